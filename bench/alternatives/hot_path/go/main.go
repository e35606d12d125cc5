// The client's and the server's hot path in Go, for comparison with Skywave's own in Python; see ../run.py.
//
//	hotpath client FRAMES BATCHES   frames of one sensor -> batches of 500 readings as Arrow streams, each after its length
//	hotpath server BATCHES          these -> blocks in ClickHouse's native format, which are counted and forgotten
package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"os"
	"strconv"
	"strings"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/ipc"
	"github.com/apache/arrow-go/v18/arrow/memory"
)

const (
	headerBytes = 10
	size        = 500
	blockRows   = 400_000
	chunk       = 64 << 10
	client      = 1
	stream      = 77
	begin       = 1_700_000_000_000_000
)

func must(err error) {
	if err != nil {
		panic(err)
	}
}

type open struct {
	created []int64
	values  []float64
}

func clientPath(from, to string) {
	in, err := os.Open(from)
	must(err)
	out, err := os.Create(to)
	must(err)
	var rest []byte
	var batch open
	seq, written := int64(0), 0
	sum := 0.0
	buffer := make([]byte, chunk)
	flush := func() {
		payload := encode(seq-int64(len(batch.values))+1, batch)
		var length [4]byte
		binary.LittleEndian.PutUint32(length[:], uint32(len(payload)))
		_, err := out.Write(length[:])
		must(err)
		_, err = out.Write(payload)
		must(err)
		written += len(payload)
		batch.created, batch.values = batch.created[:0], batch.values[:0]
	}
	for {
		n, err := in.Read(buffer)
		if err == io.EOF {
			break
		}
		must(err)
		data := append(rest, buffer[:n]...)
		at := 0
		for at+headerBytes <= len(data) {
			length, err := strconv.Atoi(strings.TrimRight(string(data[at:at+headerBytes]), " "))
			must(err)
			if at+headerBytes+length > len(data) {
				break
			}
			value, err := strconv.ParseFloat(string(data[at+headerBytes:at+headerBytes+length]), 64)
			at += headerBytes + length
			if err != nil || math.IsNaN(value) || math.IsInf(value, 0) {
				continue
			}
			seq++
			sum += value
			batch.created = append(batch.created, begin+seq*1000)
			batch.values = append(batch.values, value)
			if len(batch.values) == size {
				flush()
			}
		}
		rest = append(rest[:0], data[at:]...)
	}
	if len(batch.values) > 0 {
		flush()
	}
	must(out.Close())
	fmt.Printf("{\"readings\": %d, \"sum\": %.2f, \"bytes\": %d}\n", seq, sum, written)
}

var keyType = &arrow.DictionaryType{IndexType: arrow.PrimitiveTypes.Int16, ValueType: arrow.BinaryTypes.String}

func encode(first int64, batch open) []byte {
	metadata := arrow.NewMetadata([]string{"skywave", "batch"}, []string{"1", fmt.Sprintf("%d/%d/%d", client, stream, first)})
	schema := arrow.NewSchema([]arrow.Field{
		{Name: "data_key", Type: keyType},
		{Name: "created_at", Type: arrow.PrimitiveTypes.Int64},
		{Name: "data_value", Type: arrow.PrimitiveTypes.Float64},
	}, &metadata)
	pool := memory.DefaultAllocator
	words := array.NewStringBuilder(pool)
	words.Append("temperature")
	codes := array.NewInt16Builder(pool)
	codes.AppendValues(make([]int16, len(batch.values)), nil)
	created := array.NewInt64Builder(pool)
	created.AppendValues(batch.created, nil)
	values := array.NewFloat64Builder(pool)
	values.AppendValues(batch.values, nil)
	keys := array.NewDictionaryArray(keyType, codes.NewArray(), words.NewArray())
	record := array.NewRecord(schema, []arrow.Array{keys, created.NewArray(), values.NewArray()}, int64(len(batch.values)))
	var sink bytes.Buffer
	writer := ipc.NewWriter(&sink, ipc.WithSchema(schema), ipc.WithLZ4())
	must(writer.Write(record))
	must(writer.Close())
	return sink.Bytes()
}

type block struct {
	seq, created []int64
	codes        []int
	keys         []string
	values       []float64
}

func serverPath(from string) {
	data, err := os.ReadFile(from)
	must(err)
	var rows block
	known := map[string]int{}
	readings, written := 0, 0
	sum := 0.0
	seq := int64(0)
	for at := 0; at < len(data); {
		length := int(binary.LittleEndian.Uint32(data[at:]))
		payload := data[at+4 : at+4+length]
		at += 4 + length
		reader, err := ipc.NewReader(bytes.NewReader(payload))
		must(err)
		if !reader.Next() {
			panic("no record batch")
		}
		record := reader.Record()
		keys := record.Column(0).(*array.Dictionary)
		words := keys.Dictionary().(*array.String)
		created := record.Column(1).(*array.Int64).Int64Values()
		values := record.Column(2).(*array.Float64).Float64Values()
		own := make([]int, words.Len())
		for i := range own {
			code, ok := known[words.Value(i)]
			if !ok {
				code = len(known)
				known[words.Value(i)] = code
				rows.keys = append(rows.keys, words.Value(i))
			}
			own[i] = code
		}
		for i, value := range values {
			seq++
			rows.seq = append(rows.seq, seq)
			rows.codes = append(rows.codes, own[keys.GetValueIndex(i)])
			sum += value
		}
		rows.created = append(rows.created, created...)
		rows.values = append(rows.values, values...)
		readings += len(values)
		reader.Release()
		if len(rows.values) >= blockRows {
			written += native(&rows)
		}
	}
	if len(rows.values) > 0 {
		written += native(&rows)
	}
	fmt.Printf("{\"readings\": %d, \"sum\": %.2f, \"bytes\": %d}\n", readings, sum, written)
}

// native writes the columns of telemetry one after another, as an INSERT sends them, and empties the block.
func native(rows *block) int {
	n := len(rows.values)
	sink := make([]byte, 0, n*60)
	for i := 0; i < n; i++ {
		sink = binary.LittleEndian.AppendUint32(sink, client)
	}
	for i := 0; i < n; i++ {
		sink = binary.LittleEndian.AppendUint64(sink, stream)
	}
	for _, seq := range rows.seq {
		sink = binary.LittleEndian.AppendUint64(sink, uint64(seq))
	}
	for _, created := range rows.created {
		sink = binary.LittleEndian.AppendUint64(sink, uint64(created))
	}
	for _, code := range rows.codes {
		key := rows.keys[code]
		sink = binary.AppendUvarint(sink, uint64(len(key)))
		sink = append(sink, key...)
	}
	for _, value := range rows.values {
		sink = binary.LittleEndian.AppendUint64(sink, math.Float64bits(value))
	}
	for i := 0; i < n; i++ {
		sink = binary.LittleEndian.AppendUint64(sink, begin)
	}
	for i := 0; i < n; i++ {
		sink = binary.LittleEndian.AppendUint16(sink, 20_000)
	}
	rows.seq, rows.created, rows.codes, rows.values = rows.seq[:0], rows.created[:0], rows.codes[:0], rows.values[:0]
	return len(sink)
}

func main() {
	if os.Args[1] == "client" {
		clientPath(os.Args[2], os.Args[3])
	} else {
		serverPath(os.Args[2])
	}
}
