//! The client's and the server's hot path in Rust, for comparison with Skywave's own in Python; see ../run.py.
//!
//! `hotpath client FRAMES BATCHES`: frames of one sensor -> batches of 500 readings as Arrow streams, each after its length.
//! `hotpath server BATCHES`: these -> blocks in ClickHouse's native format, which are counted and forgotten.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Cursor, Read, Write};
use std::sync::Arc;

use arrow::array::{Array, DictionaryArray, Float64Array, Int16Array, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Int16Type, Schema};
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::{IpcWriteOptions, StreamWriter};
use arrow::ipc::CompressionType;

const HEADER: usize = 10;
const SIZE: usize = 500;
const BLOCK_ROWS: usize = 400_000;
const CHUNK: usize = 64 << 10;
const CLIENT: u32 = 1;
const STREAM: u64 = 77;
const BEGIN: i64 = 1_700_000_000_000_000;

fn client_path(from: &str, to: &str) {
    let mut input = File::open(from).unwrap();
    let mut out = BufWriter::new(File::create(to).unwrap());
    let (mut seq, mut written, mut sum) = (0i64, 0usize, 0f64);
    let (mut created, mut values) = (Vec::with_capacity(SIZE), Vec::with_capacity(SIZE));
    let mut data: Vec<u8> = Vec::new();
    let mut buffer = vec![0u8; CHUNK];
    loop {
        let n = input.read(&mut buffer).unwrap();
        if n == 0 {
            break;
        }
        data.extend_from_slice(&buffer[..n]);
        let mut at = 0;
        while at + HEADER <= data.len() {
            let header = std::str::from_utf8(&data[at..at + HEADER]).unwrap().trim_end_matches(' ');
            let length: usize = header.parse().unwrap();
            let end = at + HEADER + length;
            if end > data.len() {
                break;
            }
            let text = std::str::from_utf8(&data[at + HEADER..end]).unwrap_or("");
            at = end;
            let Ok(value) = text.parse::<f64>() else { continue };
            if !value.is_finite() {
                continue;
            }
            seq += 1;
            sum += value;
            created.push(BEGIN + seq * 1000);
            values.push(value);
            if values.len() == SIZE {
                written += flush(&mut out, seq, &mut created, &mut values);
            }
        }
        data.drain(..at);
    }
    if !values.is_empty() {
        written += flush(&mut out, seq, &mut created, &mut values);
    }
    out.flush().unwrap();
    println!("{{\"readings\": {seq}, \"sum\": {sum:.2}, \"bytes\": {written}}}");
}

fn flush(out: &mut impl Write, seq: i64, created: &mut Vec<i64>, values: &mut Vec<f64>) -> usize {
    let payload = encode(seq - values.len() as i64 + 1, std::mem::take(created), std::mem::take(values));
    out.write_all(&(payload.len() as u32).to_le_bytes()).unwrap();
    out.write_all(&payload).unwrap();
    payload.len()
}

fn encode(first: i64, created: Vec<i64>, values: Vec<f64>) -> Vec<u8> {
    let metadata = HashMap::from([
        ("skywave".to_string(), "1".to_string()),
        ("batch".to_string(), format!("{CLIENT}/{STREAM}/{first}")),
    ]);
    let keys = DataType::Dictionary(Box::new(DataType::Int16), Box::new(DataType::Utf8));
    let fields = vec![
        Field::new("data_key", keys, false),
        Field::new("created_at", DataType::Int64, false),
        Field::new("data_value", DataType::Float64, false),
    ];
    let schema = Arc::new(Schema::new_with_metadata(fields, metadata));
    let codes = Int16Array::from(vec![0i16; values.len()]);
    let words = Arc::new(StringArray::from(vec!["temperature"]));
    let columns: Vec<Arc<dyn Array>> = vec![
        Arc::new(DictionaryArray::<Int16Type>::try_new(codes, words).unwrap()),
        Arc::new(Int64Array::from(created)),
        Arc::new(Float64Array::from(values)),
    ];
    let record = RecordBatch::try_new(schema.clone(), columns).unwrap();
    let options = IpcWriteOptions::default().try_with_compression(Some(CompressionType::LZ4_FRAME)).unwrap();
    let mut writer = StreamWriter::try_new_with_options(Vec::with_capacity(8192), &schema, options).unwrap();
    writer.write(&record).unwrap();
    writer.finish().unwrap();
    writer.into_inner().unwrap()
}

#[derive(Default)]
struct Block {
    seq: Vec<u64>,
    created: Vec<i64>,
    codes: Vec<usize>,
    keys: Vec<String>,
    values: Vec<f64>,
}

fn server_path(from: &str) {
    let data = std::fs::read(from).unwrap();
    let mut rows = Block::default();
    let mut known: HashMap<String, usize> = HashMap::new();
    let (mut readings, mut written, mut sum, mut seq, mut at) = (0usize, 0usize, 0f64, 0u64, 0usize);
    while at < data.len() {
        let length = u32::from_le_bytes(data[at..at + 4].try_into().unwrap()) as usize;
        let payload = &data[at + 4..at + 4 + length];
        at += 4 + length;
        let mut reader = StreamReader::try_new(Cursor::new(payload), None).unwrap();
        let record = reader.next().unwrap().unwrap();
        let keys = record.column(0).as_any().downcast_ref::<DictionaryArray<Int16Type>>().unwrap();
        let words = keys.values().as_any().downcast_ref::<StringArray>().unwrap();
        let created = record.column(1).as_any().downcast_ref::<Int64Array>().unwrap();
        let values = record.column(2).as_any().downcast_ref::<Float64Array>().unwrap();
        let own: Vec<usize> = words
            .iter()
            .map(|word| {
                let word = word.unwrap();
                if let Some(code) = known.get(word) {
                    return *code;
                }
                let code = known.len();
                known.insert(word.to_string(), code);
                rows.keys.push(word.to_string());
                code
            })
            .collect();
        rows.codes.extend(keys.keys().values().iter().map(|code| own[*code as usize]));
        rows.created.extend_from_slice(created.values());
        rows.values.extend_from_slice(values.values());
        for value in values.values() {
            seq += 1;
            rows.seq.push(seq);
            sum += value;
        }
        readings += record.num_rows();
        if rows.values.len() >= BLOCK_ROWS {
            written += native(&mut rows);
        }
    }
    if !rows.values.is_empty() {
        written += native(&mut rows);
    }
    println!("{{\"readings\": {readings}, \"sum\": {sum:.2}, \"bytes\": {written}}}");
}

/// Writes the columns of telemetry one after another, as an INSERT sends them, and empties the block.
fn native(rows: &mut Block) -> usize {
    let n = rows.values.len();
    let mut sink: Vec<u8> = Vec::with_capacity(n * 60);
    for _ in 0..n {
        sink.extend_from_slice(&CLIENT.to_le_bytes());
    }
    for _ in 0..n {
        sink.extend_from_slice(&STREAM.to_le_bytes());
    }
    for seq in rows.seq.drain(..) {
        sink.extend_from_slice(&seq.to_le_bytes());
    }
    for created in rows.created.drain(..) {
        sink.extend_from_slice(&created.to_le_bytes());
    }
    for code in rows.codes.drain(..) {
        let key = rows.keys[code].as_bytes();
        sink.push(key.len() as u8); // a varint, of one byte below 128
        sink.extend_from_slice(key);
    }
    for value in rows.values.drain(..) {
        sink.extend_from_slice(&value.to_le_bytes());
    }
    for _ in 0..n {
        sink.extend_from_slice(&BEGIN.to_le_bytes());
    }
    for _ in 0..n {
        sink.extend_from_slice(&20_000u16.to_le_bytes());
    }
    sink.len()
}

fn main() {
    let words: Vec<String> = std::env::args().collect();
    match words[1].as_str() {
        "client" => client_path(&words[2], &words[3]),
        _ => server_path(&words[2]),
    }
}
