//! Files: torn lines, rotation, and a killed process.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::*;

const FILE: &str = "ORGKEY_AUDIT_TEST_FILE";

fn path(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("orgkey-audit-{name}-{}", std::process::id()));
    let _ = fs::remove_file(&path);
    let _ = fs::remove_dir_all(&path);
    path
}

/// The events among the lines that end in a line feed, and the number of other lines.
fn read(text: &str) -> (Vec<Value>, usize) {
    let whole: Vec<&str> = text
        .split_inclusive('\n')
        .filter(|line| line.ends_with('\n') && *line != "\n")
        .collect();
    let events: Vec<Value> = whole
        .iter()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    for event in &events {
        assert_eq!(schema::faults(event), [""; 0]);
    }
    let torn = whole.len() - events.len();
    (events, torn)
}

async fn one_more(sink: JsonLines<impl io::Write + Send + 'static>) {
    let trail = AuditTrail::start(sink).unwrap();
    let app = routes()
        .route_layer(ApiKeyLayer::new(issuer()))
        .route_layer(AuditLayer::new(&trail));
    send(&app, request("GET", "/whoami", ONE)).await;
    trail.shutdown(LONG).await.unwrap();
}

#[tokio::test]
async fn a_torn_line_never_runs_into_an_event() {
    let path = path("torn");
    one_more(JsonLines::append(&path).unwrap()).await;
    one_more(JsonLines::append(&path).unwrap()).await;
    let whole = fs::read_to_string(&path).unwrap();
    assert_eq!((read(&whole).0.len(), whole.lines().count()), (2, 2));
    // After a crash: half of the last line.
    fs::write(&path, &whole[..whole.len() - 100]).unwrap();
    assert_eq!(read(&fs::read_to_string(&path).unwrap()).0.len(), 1);
    one_more(JsonLines::append(&path).unwrap()).await;
    let (events, torn) = read(&fs::read_to_string(&path).unwrap());
    assert_eq!((events.len(), torn), (2, 1));
    // The same for a writer that cannot be read.
    fs::write(&path, &whole[..whole.len() - 100]).unwrap();
    let file = fs::OpenOptions::new().append(true).open(&path).unwrap();
    one_more(JsonLines::resume(file)).await;
    let (events, torn) = read(&fs::read_to_string(&path).unwrap());
    assert_eq!((events.len(), torn), (2, 1));
    fs::remove_file(path).unwrap();
}

#[tokio::test]
async fn a_failed_write_loses_no_event() {
    /// Takes a hundred bytes, fails once, and works from then on.
    struct Halfway(Lines, u8);

    impl io::Write for Halfway {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.1 = self.1.saturating_add(1);
            match self.1 {
                1 => self.0.write(&bytes[..100]),
                2 => Err(io::Error::other("no space left")),
                _ => self.0.write(bytes),
            }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    let lines = Lines::default();
    one_more(JsonLines::new(Halfway(lines.clone(), 0))).await;
    let (events, torn) = read(&lines.text());
    assert_eq!((events.len(), torn), (1, 1));
}

#[tokio::test]
async fn a_rotating_file_is_a_writer() {
    let folder = path("rotating");
    let file = tracing_appender::rolling::daily(&folder, "audit.jsonl");
    one_more(JsonLines::resume(file)).await;
    let files: Vec<_> = fs::read_dir(&folder)
        .unwrap()
        .map(|file| file.unwrap().path())
        .collect();
    assert_eq!(files.len(), 1);
    assert_eq!(read(&fs::read_to_string(&files[0]).unwrap()).0.len(), 1);
    fs::remove_dir_all(folder).unwrap();
}

#[cfg(unix)]
#[tokio::test]
async fn fault_226_a_renamed_file_loses_no_event() {
    use std::os::unix::fs::PermissionsExt;

    let folder = path("renamed");
    fs::create_dir(&folder).unwrap();
    let (file, rotated) = (folder.join("audit.jsonl"), folder.join("audit.jsonl.1"));
    let trail = AuditTrail::start(JsonLines::append(&file).unwrap()).unwrap();
    let app = routes()
        .route_layer(ApiKeyLayer::new(issuer()))
        .route_layer(AuditLayer::new(&trail));
    let write = async || {
        send(&app, request("GET", "/whoami", ONE)).await;
        trail.flush(LONG).await.unwrap();
    };
    let sequences = |path: &PathBuf| -> Vec<Value> {
        let (events, torn) = read(&fs::read_to_string(path).unwrap());
        assert_eq!(torn, 0);
        events
            .iter()
            .map(|event| event["metadata"]["sequence"].clone())
            .collect()
    };
    write().await;
    let mode = |path: &PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    fs::rename(&file, &rotated).unwrap();
    write().await;
    assert_eq!(mode(&file), 0o600);
    write().await;
    assert_eq!(sequences(&rotated), [0]);
    assert_eq!(sequences(&file), [1, 2]);
    // Nothing can be opened for a while.
    fs::remove_dir_all(&folder).unwrap();
    send(&app, request("GET", "/whoami", ONE)).await;
    assert!(trail.flush(Duration::from_millis(200)).await.is_err());
    fs::create_dir(&folder).unwrap();
    trail.flush(LONG).await.unwrap();
    assert_eq!(sequences(&file), [3]);
    fs::remove_dir_all(folder).unwrap();
}

/// Runs in a separate process, which is killed. Does nothing otherwise.
#[tokio::test]
async fn child_writes_until_killed() {
    let Some(path) = std::env::var_os(FILE) else {
        return;
    };
    let trail = AuditTrail::start(JsonLines::append(path).unwrap()).unwrap();
    let app = routes()
        .route_layer(ApiKeyLayer::new(issuer()))
        .route_layer(AuditLayer::new(&trail));
    for sent in 1.. {
        send(&app, request("GET", "/whoami", ONE)).await;
        if sent % 50 == 0 {
            trail.flush(LONG).await.unwrap();
            let mut out = io::stdout();
            writeln!(out, "flushed {sent}").unwrap();
            out.flush().unwrap();
        }
    }
}

#[test]
fn flushed_events_survive_a_kill() {
    let path = path("killed");
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "files::child_writes_until_killed", "--nocapture"])
        .env(FILE, &path)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let out = BufReader::new(child.stdout.take().unwrap());
    let flushed = out
        .lines()
        .filter_map(|line| {
            line.unwrap()
                .split("flushed ")
                .nth(1)?
                .parse::<usize>()
                .ok()
        })
        .find(|flushed| *flushed >= 500);
    child.kill().unwrap();
    child.wait().unwrap();
    let flushed = flushed.expect("the child ended by itself");

    let text = fs::read_to_string(&path).unwrap();
    let (events, torn) = read(&text);
    // Nothing that was flushed is missing, and no torn line is read as an event.
    assert!(events.len() >= flushed, "{} of {flushed}", events.len());
    assert_eq!(torn, 0);
    for (at, event) in events.iter().enumerate() {
        assert_eq!(event["metadata"]["sequence"], at);
    }
    fs::remove_file(path).unwrap();
}
