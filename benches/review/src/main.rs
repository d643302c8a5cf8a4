//! Reads generated audit lines on one thread, reviews their keys and writes the report. Prints lines per second of the processor
//! and the most resident memory, and checks the counts of all keys.
//!
//! `orgkey-review-bench LINES KEYS [FILE]`. The lines are generated in blocks, and the time of that is not counted. The file is the
//! previous review; if it does not exist, the report is written there.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Write};
use std::path::Path;
use std::time::Duration;

use tower_orgkey_review::{
    EvidenceBuilder, KeyFacts, KeyList, PreviousReview, Review, ReviewPolicy, UnixMillis,
};

/// A line of the audit trail; the numbers in braces differ.
const LINE: &str = include_str!("line.json");
const BLOCK: u64 = 8_192;
/// Milliseconds of the window of the lines.
const SPAN: u64 = 90 * 86_400_000;
const SINCE: u64 = 1_780_000_000_000;

struct Generator {
    parts: Vec<&'static str>,
    keys: u64,
    lines: u64,
    state: u64,
    /// How many lines each key has.
    requests: Vec<u32>,
}

const SCOPES: [&str; 4] = ["export", "read:reports", "read:users", "write:reports"];

impl Generator {
    /// Appends a line. Keys are chosen at random, except that each is used once first.
    fn line(&mut self, out: &mut String, number: u64) {
        self.state = self
            .state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let key = if number < self.keys {
            number
        } else {
            (self.state >> 33) % self.keys
        };
        let time = SINCE + (u128::from(SPAN) * u128::from(number) / u128::from(self.lines)) as u64;
        self.requests[key as usize] += 1;
        for part in &self.parts {
            // Writing to a string cannot fail.
            let _ = match *part {
                "{sequence}" => write!(out, "{number}"),
                "{time}" => write!(out, "{time}"),
                "{org}" => write!(out, "org_{:011x}", key / 10),
                "{key}" => write!(out, "api_key_{key:032x}"),
                "{request}" => write!(out, "{:032x}", self.state),
                "{scope}" => write!(out, "{}", SCOPES[(number % 4) as usize]),
                text => {
                    out.push_str(text);
                    Ok(())
                }
            };
        }
    }
}

/// Splits a template into texts and placeholders.
fn parts(template: &'static str) -> Vec<&'static str> {
    let mut parts = vec![template];
    for placeholder in [
        "{sequence}",
        "{time}",
        "{org}",
        "{key}",
        "{request}",
        "{scope}",
    ] {
        parts = parts
            .into_iter()
            .flat_map(|part| {
                let mut pieces = Vec::new();
                let mut rest = part;
                while let Some(at) = rest.find(placeholder) {
                    pieces.extend([&rest[..at], &rest[at..at + placeholder.len()]]);
                    rest = &rest[at + placeholder.len()..];
                }
                pieces.push(rest);
                pieces
            })
            .collect();
    }
    parts.retain(|part| !part.is_empty());
    parts
}

/// Returns a figure of the process in MiB.
fn memory(name: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    number.unwrap_or(0) as f64 / 1_024.0
}

/// Returns how long this thread has run. Other load on the machine does not count.
fn on_processor() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanos = text.split(' ').next().and_then(|first| first.parse().ok());
    Duration::from_nanos(nanos.unwrap_or(0))
}

/// A list of all keys, each with all scopes.
fn list(keys: u64) -> KeyList {
    let mut list = KeyList::new(UnixMillis(SINCE + SPAN));
    list.extend((0..keys).map(|key| KeyFacts {
        id: format!("api_key_{key:032x}"),
        name: format!("org_{:011x}-prod-{key}", key / 10),
        kind: "organization".to_owned(),
        status: "active".to_owned(),
        suffix: Some(format!("{:04x}", key % 65_536)),
        created_at: Some(UnixMillis(SINCE - 86_400_000)),
        last_verified_at: Some(UnixMillis(SINCE + SPAN - key)),
        scopes: SCOPES.map(str::to_owned).to_vec(),
        org: Some(format!("org_{:011x}", key / 10)),
    }));
    list
}

/// Counts what is written.
struct Written(u64);

impl Write for Written {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let mut number = || arguments.next().map(|text| text.parse().expect("a number"));
    let lines = number().unwrap_or(2_000_000);
    let keys = number().unwrap_or(1_000_000);
    let file = arguments.next();
    let mut generator = Generator {
        parts: parts(LINE.trim_end()),
        keys,
        lines,
        state: 7,
        requests: vec![0; keys as usize],
    };
    let before = memory("VmRSS");
    let began = on_processor();
    let list = list(keys);
    println!(
        "a list of {keys} keys in {:.1} s, {:.0} MiB",
        (on_processor() - began).as_secs_f64(),
        memory("VmRSS") - before
    );

    let began = on_processor();
    let open = |path: &String| BufReader::new(File::open(path).expect("a readable file"));
    let before_it = file.as_ref().filter(|path| Path::new(path).exists());
    let previous = before_it.map(|path| PreviousReview::read(open(path)).expect("a report"));
    if previous.is_some() {
        println!(
            "the previous review in {:.1} s, {:.0} MiB with the list",
            (on_processor() - began).as_secs_f64(),
            memory("VmRSS") - before
        );
    }

    let mut builder = EvidenceBuilder::new();
    let mut block = String::new();
    let mut time = Duration::ZERO;
    let mut bytes = 0;
    let mut number = 0;
    while number < lines {
        block.clear();
        for _ in 0..BLOCK.min(lines - number) {
            generator.line(&mut block, number);
            block.push('\n');
            number += 1;
        }
        bytes += block.len() as u64;
        let began = on_processor();
        builder
            .read("lines", block.as_bytes(), |_| {})
            .expect("memory does not fail");
        time += on_processor() - began;
    }
    assert_eq!(builder.problems(), []);
    println!(
        "{lines} lines of {} bytes read: {:.0} per second of one processor, {:.0} MiB at most",
        bytes / lines.max(1),
        lines as f64 / time.as_secs_f64(),
        memory("VmHWM") - before
    );

    let began = on_processor();
    let evidence = builder.finish();
    assert_eq!(evidence.lines().events, lines);
    let policy = ReviewPolicy::new();
    let mut review = Review::of(&list, &evidence, &policy);
    if let Some(previous) = &previous {
        review = review.previous(previous);
    }
    let mut report = review.stream();
    if let Some(path) = before_it {
        report.read_settled(open(path)).expect("a report");
    }
    println!(
        "{} keys reviewed in {:.1} s, {} findings, {:.0} MiB at most",
        report.key_count(),
        (on_processor() - began).as_secs_f64(),
        report.finding_count(),
        memory("VmHWM") - before
    );

    type Format<'a> = (&'a str, &'a dyn Fn(&mut Written) -> io::Result<()>);
    let formats: [Format<'_>; 3] = [
        ("JSON", &|out| Ok(serde_json::to_writer(out, &report)?)),
        ("HTML", &|out| report.write_html(out)),
        ("CSV", &|out| report.write_csv(out)),
    ];
    for (name, write) in formats {
        let began = on_processor();
        let mut written = Written(0);
        write(&mut written).expect("counting does not fail");
        println!(
            "{name}: {} MB in {:.1} s, {:.0} MiB at most",
            written.0 / 1_000_000,
            (on_processor() - began).as_secs_f64(),
            memory("VmHWM") - before
        );
    }

    if let (Some(path), None) = (&file, before_it) {
        let out = BufWriter::new(File::create(path).expect("a writable file"));
        serde_json::to_writer(out, &report).expect("a writable file");
    }

    let mut counted = 0;
    for (key, requests) in report.keys().zip(&generator.requests) {
        assert_eq!(key.allowed, u64::from(*requests), "{}", key.id);
        counted += key.allowed;
    }
    assert_eq!(counted, lines);
    println!("each of {counted} requests is counted at its key");
}
