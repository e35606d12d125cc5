"""Which of ClickHouse's errors an hour's patience does not mend, and what does.

Every code that is not named here may pass by itself: memory, quotas, too many parts, no quorum, no Keeper
(github.com/ClickHouse/ClickHouse, src/Common/ErrorCodes.cpp; the numbers never change).
"""

from __future__ import annotations

from ..errors import StoreRefused, StoreUnavailable

_LOGIN = "Check user and password_file (of [store], or in the URL) against the server's users."
_RIGHTS = "Give store.user the right; where it only reads, it needs a profile with readonly = 2."
_SCHEMA = "Check store.database; skywave store migrate makes the tables that are missing, and tells which are not ours."
_PROGRAM = "Check that this release of ClickHouse is one that the README names, and look at its log."
_CLUSTER = "Check store.cluster, and the cluster and the macros shard and replica in the server's configuration."
_DROP = "Raise max_table_size_to_drop and max_partition_size_to_drop in the server's configuration."

_HINTS = {
    192: _LOGIN,  # UNKNOWN_USER
    193: _LOGIN,  # WRONG_PASSWORD
    194: _LOGIN,  # REQUIRED_PASSWORD
    516: _LOGIN,  # AUTHENTICATION_FAILED
    195: "Allow this host's address to store.user on the server (users.xml, networks).",  # IP_ADDRESS_NOT_ALLOWED
    164: _RIGHTS,  # READONLY
    291: _RIGHTS,  # DATABASE_ACCESS_DENIED
    392: _RIGHTS,  # QUERY_IS_PROHIBITED
    452: _RIGHTS,  # SETTING_CONSTRAINT_VIOLATION
    497: _RIGHTS,  # ACCESS_DENIED
    10: _SCHEMA,  # NOT_FOUND_COLUMN_IN_BLOCK
    16: _SCHEMA,  # NO_SUCH_COLUMN_IN_TABLE
    20: _SCHEMA,  # NUMBER_OF_COLUMNS_DOESNT_MATCH
    44: _SCHEMA,  # ILLEGAL_COLUMN
    47: _SCHEMA,  # UNKNOWN_IDENTIFIER
    53: _SCHEMA,  # TYPE_MISMATCH
    60: _SCHEMA,  # UNKNOWN_TABLE
    81: _SCHEMA,  # UNKNOWN_DATABASE
    122: _SCHEMA,  # INCOMPATIBLE_COLUMNS
    181: _SCHEMA,  # ILLEGAL_FINAL
    36: _PROGRAM,  # BAD_ARGUMENTS
    43: _PROGRAM,  # ILLEGAL_TYPE_OF_ARGUMENT
    46: _PROGRAM,  # UNKNOWN_FUNCTION
    48: _PROGRAM,  # NOT_IMPLEMENTED
    50: _PROGRAM,  # UNKNOWN_TYPE
    62: _PROGRAM,  # SYNTAX_ERROR: an unknown macro too, with 18.16
    115: _PROGRAM,  # UNKNOWN_SETTING
    344: _PROGRAM,  # SUPPORT_IS_DISABLED
    139: _CLUSTER,  # NO_ELEMENTS_IN_CONFIG
    170: _CLUSTER,  # BAD_GET: of 18.16 for a cluster that it does not know
    701: _CLUSTER,  # CLUSTER_DOESNT_EXIST
    359: _DROP,  # TABLE_SIZE_EXCEEDS_MAX_DROP_SIZE_LIMIT
}
_TLS_HINTS = {
    "CERTIFICATE_VERIFY_FAILED": "Check that store.ca_file is the authority of the server's certificate, and that the"
    " certificate is for the host name that is configured.",
    "WRONG_VERSION_NUMBER": "That port does not speak TLS: store.port is the server's tcp_port_secure, usually 9440.",
}


def unavailable(message: str, code: int) -> StoreUnavailable:
    """The error for an answer with ``code``; 0 if it had none."""
    if code in _HINTS:
        return StoreRefused(message, _HINTS[code])
    return StoreUnavailable(message, "Look at the server's log.")


def unreachable(message: str) -> StoreUnavailable:
    """The error for a server that gave no answer, judged by what the attempt said of itself."""
    for sign, hint in _TLS_HINTS.items():
        if sign in message:
            return StoreRefused(message, hint)
    if "Unexpected packet from server" in message:  # clickhouse-driver's words
        return StoreRefused(
            message, "That port does not speak ClickHouse's native protocol: store.port is its tcp_port."
        )
    return StoreUnavailable(message, "Check that ClickHouse runs and listens there.")
