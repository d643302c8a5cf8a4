//! The spool file: torn, damaged, shared, and with records that were stored before.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use tower_orgkey_usage::test_util::TestWallClock;
use tower_orgkey_usage::{PushError, SpoolFile, SpoolFileError};

use crate::kit::{Memory, app, next_minute, read_times, sums, usage, wall};

struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Self {
        let name = format!("orgkey-unsent-{}-{name}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        fs::create_dir_all(&directory).unwrap();
        Self(directory)
    }

    fn path(&self) -> PathBuf {
        self.0.join("unsent")
    }

    fn open(&self) -> Result<SpoolFile, SpoolFileError> {
        SpoolFile::open(self.path())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Counts a request of each key in each minute, with a sink that stores nothing, and keeps the file.
async fn leave_behind(place: &Place, wall: &TestWallClock, keys: u64, minutes: u64) {
    let usage = usage(wall).build().unwrap();
    let sink = Memory::new(|_| Err(PushError::retry("down")));
    let mut pusher = usage
        .handle()
        .pusher(sink)
        .spool_file(place.open().unwrap())
        .build()
        .unwrap();
    let app = app(&usage);
    for _ in 0..minutes {
        for key in 0..keys {
            read_times(&app, 1, &format!("key.org_1.k{key}")).await;
        }
        next_minute(wall);
        pusher.push_closed().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_torn_last_line_is_truncated() {
    let place = Place::new("torn");
    let wall = wall();
    leave_behind(&place, &wall, 3, 2).await;
    let whole = fs::read(place.path()).unwrap();
    let lines: Vec<usize> = (0..whole.len()).filter(|at| whole[*at] == b'\n').collect();
    assert_eq!(lines.len(), 3, "what it is, and a line for each minute");
    // At any position in the last line.
    for cut in [lines[1] + 2, lines[1] + 17, lines[1] + 100, lines[2]] {
        fs::write(place.path(), &whole[..cut]).unwrap();
        let file = place.open().unwrap();
        assert_eq!(file.len(), 3, "cut at {cut}");
        drop(file);
        assert_eq!(fs::read(place.path()).unwrap(), whole[..=lines[1]]);
    }
    // Writing continues there.
    leave_behind(&place, &wall, 1, 1).await;
    assert_eq!(place.open().unwrap().len(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_damaged_file_is_left_unchanged() {
    let place = Place::new("damaged");
    leave_behind(&place, &wall(), 3, 2).await;
    let whole = fs::read(place.path()).unwrap();
    let first_line = whole.iter().position(|byte| *byte == b'\n').unwrap();
    let mut cases = vec![
        (1, b"some text of the user's\n".to_vec()),
        (1, b"some text without an end".to_vec()),
        (1, whole[first_line + 1..].to_vec()),
        (1, whole[..first_line - 3].to_vec()),
        (4, [&whole[..], b"\n"].concat()),
        (4, [&whole[..], &whole[..=first_line]].concat()),
    ];
    // Any byte of any whole line.
    for at in (0..whole.len()).step_by(7) {
        if whole[at] == b'\n' {
            continue;
        }
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        if bytes[at] == b'\n' {
            continue;
        }
        let line = whole[..at].split(|byte| *byte == b'\n').count();
        cases.push((line, bytes));
    }
    assert!(cases.len() > 100);
    for (expected, bytes) in cases {
        fs::write(place.path(), &bytes).unwrap();
        match place.open() {
            Err(SpoolFileError::Damaged { line, .. }) => assert_eq!(line, expected),
            other => panic!("{other:?} of {}", String::from_utf8_lossy(&bytes)),
        }
        assert_eq!(fs::read(place.path()).unwrap(), bytes);
    }
}

#[tokio::test(start_paused = true)]
async fn stored_records_leave_the_spool_file() {
    let place = Place::new("taken");
    let wall = wall();
    leave_behind(&place, &wall, 4, 5).await;
    let left: Vec<String> = {
        let text = fs::read_to_string(place.path()).unwrap();
        let ids = text.split("\"id\":\"").skip(1);
        // Those of records, not of keys.
        ids.filter_map(|rest| Some(rest.split_once('"')?.0.to_owned()))
            .filter(|id| id.len() > 30)
            .collect()
    };
    assert_eq!(left.len(), 20);
    let usage = usage(&wall).build().unwrap();
    let mut calls = 0;
    // Stores two batches, then nothing.
    let sink = Memory::new(move |_| {
        calls += 1;
        if calls <= 2 {
            Ok(())
        } else {
            Err(PushError::retry("down"))
        }
    });
    let file = place.open().unwrap();
    assert!(matches!(place.open(), Err(SpoolFileError::InUse { .. })));
    let mut pusher = usage
        .handle()
        .pusher(Arc::clone(&sink))
        .batch_size(3)
        .spool_file(file)
        .build()
        .unwrap();
    let report = pusher.push_closed().await;
    assert_eq!((report.pushed, report.waiting), (6, 14));
    drop(pusher);
    assert_eq!(usage.handle().stats().dropped, 0, "the file has them");

    let rest = Memory::new(|_| Ok(()));
    let file = place.open().unwrap();
    assert_eq!(file.len(), 14);
    let mut pusher = usage
        .handle()
        .pusher(Arc::clone(&rest))
        .spool_file(file)
        .build()
        .unwrap();
    pusher.push_closed().await;
    let ids: Vec<String> = sink
        .taken()
        .into_iter()
        .chain(rest.taken())
        .map(|record| record.id)
        .collect();
    assert_eq!(ids, left, "each once, in order");
    assert_eq!(rest.sums(), sums(&[("org_1", 14)]));
    drop(pusher);
    let size = fs::metadata(place.path()).unwrap().len();
    assert!(size < 100, "{size} bytes of what is done with");
}

#[tokio::test(start_paused = true)]
async fn an_unwritable_file_stops_no_push() {
    let place = Place::new("gone");
    let wall = wall();
    let usage = usage(&wall).build().unwrap();
    let sink = Memory::new(|_| Ok(()));
    let mut pusher = usage
        .handle()
        .pusher(Arc::clone(&sink))
        .spool_file(place.open().unwrap())
        .build()
        .unwrap();
    let app = app(&usage);
    read_times(&app, 1, "key.org_1.k1").await;
    // The directory is removed, so the file cannot be replaced.
    fs::remove_dir_all(&place.0).unwrap();
    next_minute(&wall);
    assert_eq!(pusher.push_closed().await.pushed, 1);
    read_times(&app, 1, "key.org_1.k1").await;
    next_minute(&wall);
    assert_eq!(pusher.push_closed().await.pushed, 1);
    assert!(!place.path().exists(), "it could be written after all");
    // The directory is back: the file is written again from memory.
    fs::create_dir_all(&place.0).unwrap();
    read_times(&app, 1, "key.org_1.k1").await;
    next_minute(&wall);
    pusher.push_closed().await;
    drop(pusher);
    assert!(place.open().unwrap().is_empty());
    assert_eq!(sink.sums(), sums(&[("org_1", 3)]));
    assert!(matches!(
        SpoolFile::open("/nowhere/at/all/unsent"),
        Err(SpoolFileError::Io { .. })
    ));
}
