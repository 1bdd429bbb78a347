//! The part of the Kafka protocol that a producer needs, in the oldest versions that Kafka 4 still speaks (KIP-896):
//! Metadata 4, Produce 3, SaslHandshake 1, SaslAuthenticate 0. They have fixed layouts without tagged fields, and every
//! broker since 0.11 knows them.

/// A request's kind and version.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Api {
    key: i16,
    version: i16,
    pub(super) name: &'static str,
}

pub(super) const PRODUCE: Api = api(0, 3, "Produce");
pub(super) const METADATA: Api = api(3, 4, "Metadata");
pub(super) const SASL_HANDSHAKE: Api = api(17, 1, "SaslHandshake");
pub(super) const SASL_AUTHENTICATE: Api = api(36, 0, "SaslAuthenticate");

const fn api(key: i16, version: i16, name: &'static str) -> Api {
    Api { key, version, name }
}

/// All replicas in sync must have a record.
const ACKS_ALL: i16 = -1;
/// Most partitions of a topic that are dealt with.
const PARTITIONS_MAX: usize = 100_000;

/// A request in the making; the length in front is written by [`Request::finish`].
pub(super) struct Request {
    out: Vec<u8>,
}

impl Request {
    pub(super) fn new(api: Api, correlation_id: i32) -> Self {
        let mut request = Request { out: vec![0; 4] };
        request.i16(api.key);
        request.i16(api.version);
        request.i32(correlation_id);
        request.string("holdfast");
        request
    }

    pub(super) fn i8(&mut self, value: i8) {
        self.out.extend_from_slice(&value.to_be_bytes());
    }

    pub(super) fn i16(&mut self, value: i16) {
        self.out.extend_from_slice(&value.to_be_bytes());
    }

    pub(super) fn i32(&mut self, value: i32) {
        self.out.extend_from_slice(&value.to_be_bytes());
    }

    pub(super) fn string(&mut self, value: &str) {
        // Names are bounded by the settings' checks.
        self.i16(i16::try_from(value.len()).unwrap_or(i16::MAX));
        self.out.extend_from_slice(value.as_bytes());
    }

    pub(super) fn bytes(&mut self, value: &[u8]) {
        self.count(value.len());
        self.out.extend_from_slice(value);
    }

    fn count(&mut self, count: usize) {
        self.i32(i32::try_from(count).unwrap_or(i32::MAX));
    }

    /// The bytes to send.
    pub(super) fn finish(mut self) -> Vec<u8> {
        let length = i32::try_from(self.out.len() - 4).unwrap_or(i32::MAX);
        self.out[..4].copy_from_slice(&length.to_be_bytes());
        self.out
    }
}

/// Asks for the partitions of a topic, without making it.
pub(super) fn put_metadata(topic: &str, request: &mut Request) {
    request.count(1);
    request.string(topic);
    request.i8(0);
}

/// Batches of records for partitions of a topic.
pub(super) fn put_produce(topic: &str, timeout_ms: i32, batches: &[(i32, Vec<u8>)], request: &mut Request) {
    // No transaction.
    request.i16(-1);
    request.i16(ACKS_ALL);
    request.i32(timeout_ms);
    request.count(1);
    request.string(topic);
    request.count(batches.len());
    for (partition, records) in batches {
        request.i32(*partition);
        request.bytes(records);
    }
}

/// An answer that cannot be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the answer is cut short or not of this protocol")]
pub(super) struct Malformed;

/// Reads an answer.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        self.take(N)?.try_into().map_err(|_| Malformed)
    }

    pub(super) fn i8(&mut self) -> Result<i8, Malformed> {
        self.array().map(i8::from_be_bytes)
    }

    pub(super) fn i16(&mut self) -> Result<i16, Malformed> {
        self.array().map(i16::from_be_bytes)
    }

    pub(super) fn i32(&mut self) -> Result<i32, Malformed> {
        self.array().map(i32::from_be_bytes)
    }

    pub(super) fn i64(&mut self) -> Result<i64, Malformed> {
        self.array().map(i64::from_be_bytes)
    }

    /// A text; one that is null is empty.
    pub(super) fn string(&mut self) -> Result<&'a str, Malformed> {
        let length = self.i16()?.max(0);
        let bytes = self.take(usize::try_from(length).map_err(|_| Malformed)?)?;
        std::str::from_utf8(bytes).map_err(|_| Malformed)
    }

    pub(super) fn bytes(&mut self) -> Result<&'a [u8], Malformed> {
        let length = self.count()?;
        self.take(length)
    }

    /// The length of an array; null counts as none.
    pub(super) fn count(&mut self) -> Result<usize, Malformed> {
        usize::try_from(self.i32()?.max(0)).map_err(|_| Malformed)
    }
}

/// A broker and where it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Broker {
    pub(super) id: i32,
    pub(super) host: String,
    pub(super) port: u16,
}

/// What a cluster says of a topic.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Metadata {
    pub(super) brokers: Vec<Broker>,
    /// The error of the topic, or 0.
    pub(super) error: i16,
    /// The leader of each partition, by the partition's number; `None` while it has none.
    pub(super) leaders: Vec<Option<i32>>,
}

/// The answer to [`put_metadata`].
pub(super) fn read_metadata(body: &[u8]) -> Result<Metadata, Malformed> {
    let mut reader = Reader(body);
    let mut metadata = Metadata::default();
    // Time of throttling.
    reader.i32()?;
    for _ in 0..reader.count()? {
        let (id, host, port) = (reader.i32()?, reader.string()?.to_owned(), reader.i32()?);
        // Rack.
        reader.string()?;
        let port = u16::try_from(port).map_err(|_| Malformed)?;
        metadata.brokers.push(Broker { id, host, port });
    }
    // Id of the cluster, number of the controller.
    reader.string()?;
    reader.i32()?;
    for _ in 0..reader.count()? {
        metadata.error = reader.i16()?;
        reader.string()?;
        reader.i8()?;
        for _ in 0..reader.count()? {
            read_partition(&mut reader, &mut metadata.leaders)?;
        }
    }
    Ok(metadata)
}

fn read_partition(reader: &mut Reader<'_>, leaders: &mut Vec<Option<i32>>) -> Result<(), Malformed> {
    let error = reader.i16()?;
    let number = usize::try_from(reader.i32()?).map_err(|_| Malformed)?;
    let leader = reader.i32()?;
    // Replicas, and those in sync.
    for _ in 0..2 {
        let count = reader.count()?;
        reader.take(count.checked_mul(4).ok_or(Malformed)?)?;
    }
    if number >= PARTITIONS_MAX {
        return Err(Malformed);
    }
    if leaders.len() <= number {
        leaders.resize(number + 1, None);
    }
    leaders[number] = (error == 0 && leader >= 0).then_some(leader);
    Ok(())
}

/// The answer to [`put_produce`]: an error, or 0, for each partition.
pub(super) fn read_produce(body: &[u8]) -> Result<Vec<(i32, i16)>, Malformed> {
    let mut reader = Reader(body);
    let mut outcomes = Vec::new();
    for _ in 0..reader.count()? {
        reader.string()?;
        for _ in 0..reader.count()? {
            outcomes.push((reader.i32()?, reader.i16()?));
            // Offset and time of the first record.
            reader.i64()?;
            reader.i64()?;
        }
    }
    Ok(outcomes)
}

/// What an error means for the records that met it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Meaning {
    /// Trying again may help.
    Passing,
    /// One of the records will never be taken.
    Refusal,
}

/// Name and meaning of an error (<https://kafka.apache.org/protocol#protocol_error_codes>).
pub(super) fn error(code: i16) -> (String, Meaning) {
    let (name, meaning) = match code {
        2 => ("CORRUPT_MESSAGE", Meaning::Passing),
        3 => ("UNKNOWN_TOPIC_OR_PARTITION", Meaning::Passing),
        5 => ("LEADER_NOT_AVAILABLE", Meaning::Passing),
        6 => ("NOT_LEADER_OR_FOLLOWER", Meaning::Passing),
        7 => ("REQUEST_TIMED_OUT", Meaning::Passing),
        10 => ("MESSAGE_TOO_LARGE", Meaning::Refusal),
        17 => ("INVALID_TOPIC_EXCEPTION", Meaning::Passing),
        18 => ("RECORD_LIST_TOO_LARGE", Meaning::Refusal),
        19 => ("NOT_ENOUGH_REPLICAS", Meaning::Passing),
        20 => ("NOT_ENOUGH_REPLICAS_AFTER_APPEND", Meaning::Passing),
        29 => ("TOPIC_AUTHORIZATION_FAILED", Meaning::Passing),
        31 => ("CLUSTER_AUTHORIZATION_FAILED", Meaning::Passing),
        32 => ("INVALID_TIMESTAMP", Meaning::Refusal),
        33 => ("UNSUPPORTED_SASL_MECHANISM", Meaning::Passing),
        35 => ("UNSUPPORTED_VERSION", Meaning::Passing),
        58 => ("SASL_AUTHENTICATION_FAILED", Meaning::Passing),
        87 => ("INVALID_RECORD", Meaning::Refusal),
        _ => ("error", Meaning::Passing),
    };
    (format!("{name} ({code})"), meaning)
}
