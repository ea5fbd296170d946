//! The validator beside two decoders that have nothing in common with it: prost, and Python's upb. What it accepts is
//! acknowledged, stored and put in a row with others, so it must accept nothing that one of them refuses.
//!
//! The requests are real ones that were changed: blindly, byte by byte; and knowingly, so that every length around the
//! change is right again and the change itself is what is judged. `TRACESPOOL_TEST_SEED` repeats a run.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::process::{Command, Stdio};

use fastrand::Rng;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use prost::Message as _;
use tracespool::otlp::validate;

/// Changed requests; the hand-picked ones come in addition.
const CASES: usize = 60_000;

const SAMPLES: [&[u8]; 6] = [
    include_bytes!("data/nested.otlp.pb"),
    include_bytes!("data/nested.mlflow-logspans.pb"),
    include_bytes!("data/error.otlp.pb"),
    include_bytes!("data/error.mlflow-logspans.pb"),
    include_bytes!("data/llm.otlp.pb"),
    include_bytes!("data/llm.mlflow-logspans.pb"),
];

#[test]
fn nothing_is_accepted_that_a_decoder_refuses() {
    let seed = std::env::var("TRACESPOOL_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    let mut rng = Rng::with_seed(seed);
    let mut requests = nasty();
    let hand_picked = requests.len();
    requests.extend((0..CASES).map(|_| changed(&mut rng)));
    let upb = ask_python(&requests);

    let mut verdicts = BTreeMap::<_, usize>::new();
    for (at, (request, upb)) in requests.iter().zip(upb).enumerate() {
        let ours = validate(request);
        let prost = ExportTraceServiceRequest::decode(&request[..]);
        let accepted_by_all = prost.is_ok() && upb;
        assert!(
            ours.is_err() || accepted_by_all,
            "seed {seed}: accepted, though {} it: {request:02x?}",
            if upb { format!("prost refuses ({prost:?})") } else { "upb refuses".to_owned() }
        );
        if at >= hand_picked {
            *verdicts.entry((ours.is_ok(), prost.is_ok(), upb)).or_default() += 1;
        }
    }
    println!("seed {seed}; accepted by us, prost, upb: {verdicts:?}");
    // A generator whose requests are all good, or all bad, shows nothing.
    let accepted = verdicts.get(&(true, true, true)).copied().unwrap_or(0);
    assert!((CASES / 10..CASES * 9 / 10).contains(&accepted), "seed {seed}: {verdicts:?}");
}

/// What upb says, request by request.
fn ask_python(requests: &[Vec<u8>]) -> Vec<bool> {
    let python = std::env::var("TRACESPOOL_TEST_PYTHON").expect("TRACESPOOL_TEST_PYTHON names a Python; see tests/run");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/peers/decode_requests.py");
    let mut child =
        Command::new(python).arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("Python starts");
    let mut input = child.stdin.take().expect("it is piped");
    let mut output = child.stdout.take().expect("it is piped");
    let mut verdicts = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for request in requests {
                let length = u32::try_from(request.len()).expect("small");
                input.write_all(&length.to_be_bytes()).expect("Python reads");
                input.write_all(request).expect("Python reads");
            }
        });
        output.read_to_end(&mut verdicts).expect("Python answers");
    });
    assert!(child.wait().expect("it ends").success());
    assert_eq!(verdicts.len(), requests.len());
    verdicts.into_iter().map(|verdict| verdict == b'1').collect()
}

/// The message types of a request, as far as their fields matter here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Request,
    ResourceSpans,
    Resource,
    EntityRef,
    ScopeSpans,
    Scope,
    Span,
    Event,
    Link,
    Status,
    KeyValue,
    AnyValue,
    ArrayValue,
    KeyValueList,
}

impl Kind {
    /// The message in this field, if there is one.
    fn inner(self, number: u64) -> Option<Self> {
        Some(match (self, number) {
            (Self::Request, 1) => Self::ResourceSpans,
            (Self::ResourceSpans, 1) => Self::Resource,
            (Self::ResourceSpans, 2) => Self::ScopeSpans,
            (Self::Resource, 3) => Self::EntityRef,
            (Self::ScopeSpans, 1) => Self::Scope,
            (Self::ScopeSpans, 2) => Self::Span,
            (Self::Span, 11) => Self::Event,
            (Self::Span, 13) => Self::Link,
            (Self::Span, 15) => Self::Status,
            (Self::Resource, 1)
            | (Self::Scope | Self::Event, 3)
            | (Self::Span, 9)
            | (Self::Link, 4)
            | (Self::KeyValueList, 1) => Self::KeyValue,
            (Self::KeyValue, 2) | (Self::ArrayValue, 1) => Self::AnyValue,
            (Self::AnyValue, 5) => Self::ArrayValue,
            (Self::AnyValue, 6) => Self::KeyValueList,
            _ => return None,
        })
    }
}

/// A field as bytes, or a message whose length is written when it is put together again.
enum Part {
    Bytes(Vec<u8>),
    Message { number: u64, parts: Vec<Part> },
}

const LEN: u64 = 2;

fn varint(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while value > 0x7f {
        out.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
    out
}

/// The same number in more bytes than it needs.
fn long_varint(value: u64, more: usize) -> Vec<u8> {
    let mut out = varint(value);
    for _ in 0..more {
        *out.last_mut().expect("a varint has a byte") |= 0x80;
        out.push(0);
    }
    out
}

fn field(number: u64, content: &[u8]) -> Vec<u8> {
    [varint(number << 3 | LEN), varint(content.len() as u64), content.to_vec()].concat()
}

fn take_varint(bytes: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..).step_by(7) {
        let (first, rest) = bytes.split_first().expect("a sample is whole");
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if *first < 0x80 {
            break;
        }
    }
    value
}

/// Takes a sample apart.
fn parse(kind: Kind, mut bytes: &[u8]) -> Vec<Part> {
    let mut parts = Vec::new();
    while !bytes.is_empty() {
        let whole = bytes;
        let tag = take_varint(&mut bytes);
        let length = match tag & 7 {
            0 => {
                take_varint(&mut bytes);
                0
            }
            1 => 8,
            LEN => usize::try_from(take_varint(&mut bytes)).expect("a sample is small"),
            _ => 4,
        };
        let (content, rest) = bytes.split_at(length);
        bytes = rest;
        parts.push(match kind.inner(tag >> 3) {
            Some(inner) => Part::Message { number: tag >> 3, parts: parse(inner, content) },
            None => Part::Bytes(whole[..whole.len() - rest.len()].to_vec()),
        });
    }
    parts
}

/// Puts it together again, now and then with lengths that are longer than need be.
fn join(parts: &[Part], rng: &mut Rng) -> Vec<u8> {
    let mut out = Vec::new();
    for part in parts {
        match part {
            Part::Bytes(bytes) => out.extend_from_slice(bytes),
            Part::Message { number, parts } => {
                let content = join(parts, rng);
                let more = if rng.u32(..400) == 0 { rng.usize(..6) } else { 0 };
                out.extend(varint(number << 3 | LEN));
                out.extend(long_varint(content.len() as u64, more));
                out.extend(content);
            }
        }
    }
    out
}

fn changed(rng: &mut Rng) -> Vec<u8> {
    let sample = SAMPLES[rng.usize(..SAMPLES.len())];
    if rng.u32(..3) == 0 {
        let mut bytes = sample.to_vec();
        for _ in 0..rng.usize(1..4) {
            change_blindly(&mut bytes, rng);
        }
        return bytes;
    }
    let mut parts = parse(Kind::Request, sample);
    for _ in 0..rng.usize(1..3) {
        change_knowingly(&mut parts, rng);
    }
    join(&parts, rng)
}

fn change_blindly(bytes: &mut Vec<u8>, rng: &mut Rng) {
    if bytes.is_empty() {
        return;
    }
    let at = rng.usize(..bytes.len());
    match rng.u32(..6) {
        0 => bytes[at] ^= 1 << rng.u32(..8),
        1 => bytes[at] = rng.u8(..),
        2 => drop(bytes.remove(at)),
        3 => bytes.insert(at, rng.u8(..)),
        4 => bytes.truncate(at),
        _ => {
            let end = (at + rng.usize(..64)).min(bytes.len());
            let copy = bytes[at..end].to_vec();
            let to = rng.usize(..bytes.len());
            bytes.splice(to..to, copy);
        }
    }
}

/// Changes one field somewhere, or adds one.
fn change_knowingly(parts: &mut Vec<Part>, rng: &mut Rng) {
    // Down some levels first: most fields are deep.
    let inner = parts.iter().filter(|part| matches!(part, Part::Message { .. })).count();
    if inner > 0 && rng.u32(..6) > 0 {
        let pick = rng.usize(..inner);
        let messages = parts.iter_mut().filter_map(|part| match part {
            Part::Message { parts, .. } => Some(parts),
            Part::Bytes(_) => None,
        });
        if let Some(parts) = messages.into_iter().nth(pick) {
            return change_knowingly(parts, rng);
        }
    }
    let at = rng.usize(..=parts.len());
    match rng.u32(..4) {
        0 | 1 => parts.insert(at, Part::Bytes(any_field(rng))),
        2 if at < parts.len() => drop(parts.remove(at)),
        _ => {
            if let Some(Part::Bytes(bytes)) = parts.get_mut(at) {
                change_blindly(bytes, rng);
            }
        }
    }
}

/// A field that may or may not be one: any number, any wire type, any way to write them.
fn any_field(rng: &mut Rng) -> Vec<u8> {
    let number = match rng.u32(..8) {
        0..6 => rng.u64(1..20),
        6 => rng.u64(..4000),
        _ => [0, (1 << 29) - 1, 1 << 29, 1000, 19_000, u64::MAX >> 3][rng.usize(..6)],
    };
    let wire_type = rng.u64(..8);
    let longer = if rng.u32(..8) == 0 { rng.usize(..10) } else { 0 };
    let tag = long_varint(number.wrapping_shl(3) | wire_type, longer);
    let bytes = |rng: &mut Rng, length: usize| -> Vec<u8> { (0..length).map(|_| rng.u8(..)).collect() };
    let content = match wire_type {
        0 => match rng.u32(..5) {
            0 => varint(rng.u64(..)),
            1 => varint(rng.u64(..300)),
            2 => [&[0xff; 9][..], &[rng.u8(..4)]].concat(),
            3 => [&[0x80; 9][..], &[rng.u8(..4)]].concat(),
            _ => long_varint(rng.u64(..300), rng.usize(..12)),
        },
        1 => bytes(rng, 8),
        2 => {
            let length = [0, 1, 2, 7, 8, 9, 15, 16, 17, 40][rng.usize(..10)];
            let text = match rng.u32(..4) {
                0 => bytes(rng, length),
                1 => vec![b'a'; length],
                2 => ["", "é", "🦀", "\0"][rng.usize(..4)].as_bytes().to_vec(),
                _ => field(rng.u64(1..8), &vec![b'a'; length]),
            };
            let more = if rng.u32(..8) == 0 { rng.usize(..8) } else { 0 };
            [long_varint(text.len() as u64, more), text].concat()
        }
        3 => {
            let inside = if rng.bool() { any_field(rng) } else { Vec::new() };
            let other = if rng.u32(..6) == 0 { rng.u64(1..20) } else { number };
            [inside, varint(other.wrapping_shl(3) | 4)].concat()
        }
        5 => bytes(rng, 4),
        _ => Vec::new(),
    };
    [tag, content].concat()
}

/// Hand-picked: where decoders are known to differ, in every place.
fn nasty() -> Vec<Vec<u8>> {
    let within = |path: &[u64], content: &[u8]| {
        path.iter().rev().fold(content.to_vec(), |content, number| field(*number, &content))
    };
    let places: [&[u64]; 14] = [
        &[],
        &[1],
        &[1, 1],
        &[1, 1, 3],
        &[1, 2],
        &[1, 2, 1],
        &[1, 2, 2],
        &[1, 2, 2, 9],
        &[1, 2, 2, 9, 2],
        &[1, 2, 2, 9, 2, 5],
        &[1, 2, 2, 9, 2, 6],
        &[1, 2, 2, 11],
        &[1, 2, 2, 13],
        &[1, 2, 2, 15],
    ];
    let mut fields: Vec<Vec<u8>> = vec![
        vec![0x00],
        vec![0x00, 0x00],
        vec![0x06],
        vec![0x07],
        vec![0x80],
        vec![0xff; 11],
        vec![0xf8, 0xff, 0xff, 0xff, 0x0f, 1],
        vec![0xf8, 0xff, 0xff, 0xff, 0x1f, 1],
        vec![0xf8, 0xff, 0xff, 0xff, 0x7f, 1],
        vec![0xfa, 0xff, 0xff, 0xff, 0xff, 0x0f, 0],
        vec![0x0a, 0xff, 0xff, 0xff, 0xff, 0x07],
        vec![0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f],
        vec![0x0a, 0x80, 0x80, 0x80, 0x80, 0x10],
        vec![0x0a, 0x80, 0x80, 0x80, 0x80, 0x80, 0x00],
        [&[0x0a][..], &[0x80; 9], &[0x01]].concat(),
        [&[0x78][..], &[0xff; 9], &[0x01]].concat(),
        [&[0x78][..], &[0xff; 9], &[0x02]].concat(),
        [&[0x78][..], &[0x80; 10], &[0x00]].concat(),
    ];
    for number in 1..18 {
        for wire_type in 0..8 {
            let tag = varint(number << 3 | wire_type);
            for content in [&[][..], &[0], &[1, 0xff], &[2, 0xc3, 0x28], &[0; 8], &[0xff; 4]] {
                fields.push([&tag[..], content].concat());
            }
            fields.push([&tag[..], &varint(number << 3 | 4)].concat());
            for longer in 1..10 {
                fields.push([&long_varint(number << 3 | wire_type, longer)[..], &[1, b'a', 0, 0, 0, 0, 0, 0]].concat());
            }
        }
    }
    let mut requests: Vec<Vec<u8>> =
        places.iter().flat_map(|place| fields.iter().map(|field| within(place, field))).collect();
    // Around every limit on depth, by lists, by maps, by groups, and by groups inside lists.
    for depth in 1..110 {
        let lists = (0..depth).fold(Vec::new(), |value, _| field(5, &field(1, &value)));
        let maps = (0..depth).fold(Vec::new(), |value, _| field(6, &field(1, &field(2, &value))));
        let groups = [vec![0x7b; depth], vec![0x7c; depth]].concat();
        let unknown = (0..depth).fold(Vec::new(), |value, _| field(1000, &value));
        requests.push(within(&[1, 2, 2, 9, 2], &[&lists[..], &groups].concat()));
        for content in [lists, maps, groups, unknown] {
            requests.push(within(&[1, 2, 2, 9, 2], &content));
            requests.push(content);
        }
    }
    requests
}
