//! Records whose push had no clear answer, or that are too old: parked, listed and settled.

use std::fs;
use std::future::pending;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use metrics_util::debugging::{DebugValue, DebuggingRecorder};
use tower_orgkey_usage::test_util::TestWallClock;
use tower_orgkey_usage::{
    ParkReason, PushError, Settlement, SpoolFile, UsageLayer, UsagePusher, UsageRecord, UsageSink,
    telemetry,
};

use crate::kit::{MINUTE, Memory, Scratch, app, next_minute, read_times, start, sums, usage, wall};

const HOUR: Duration = Duration::from_secs(3_600);

/// A sink that knows its meter.
struct Limited {
    memory: Arc<Memory>,
    remembers: Option<Duration>,
    oldest: Option<Duration>,
    max_batch: Option<usize>,
}

impl Limited {
    fn day(memory: &Arc<Memory>) -> Self {
        Self {
            memory: Arc::clone(memory),
            remembers: Some(24 * HOUR),
            oldest: Some(35 * 24 * HOUR),
            max_batch: None,
        }
    }
}

impl UsageSink for Limited {
    async fn push(&self, batch: &[UsageRecord]) -> Result<(), PushError> {
        self.memory.push(batch).await
    }

    fn remembers(&self) -> Option<Duration> {
        self.remembers
    }

    fn oldest(&self) -> Option<Duration> {
        self.oldest
    }

    fn max_batch(&self) -> Option<usize> {
        self.max_batch
    }
}

/// A pusher with one record of an organization for each key, of the minute that is over.
async fn with_records<S: UsageSink>(
    wall: &TestWallClock,
    usage: &UsageLayer,
    sink: S,
    file: Option<SpoolFile>,
    keys: u64,
) -> UsagePusher<S> {
    let mut pusher = usage.handle().pusher(sink);
    if let Some(file) = file {
        pusher = pusher.spool_file(file);
    }
    let pusher = pusher.build().unwrap();
    let app = app(usage);
    for key in 0..keys {
        read_times(&app, 1, &format!("key.org_{key}.k{key}")).await;
    }
    next_minute(wall);
    pusher
}

fn forward(wall: &TestWallClock, by: Duration) {
    wall.set(wall.now() + by);
}

#[tokio::test(start_paused = true)]
async fn fault_160_an_unanswered_record_is_parked() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let scratch = Scratch::new("unanswered");
    let wall = wall();
    let usage = usage(&wall).build().unwrap();
    let loses = Memory::new(|_| Err(PushError::retry("the answer was lost")));
    let file = Some(scratch.file());
    let mut pusher = with_records(&wall, &usage, Limited::day(&loses), file, 2).await;
    assert_eq!(pusher.push_closed().await.waiting, 2);
    let sent = wall.now();
    // A push takes up to 10 s.
    wall.set(sent + 24 * HOUR - Duration::from_secs(11));
    let report = pusher.push_closed().await;
    assert_eq!((report.waiting, report.parked), (2, 0), "{report:?}");
    let calls = loses.calls();
    forward(&wall, Duration::from_secs(1));
    let report = pusher.push_closed().await;
    assert_eq!((report.waiting, report.parked), (0, 2), "{report:?}");
    assert_eq!(loses.calls(), calls, "a forgotten id was pushed again");
    drop(pusher);
    let stats = usage.handle().stats();
    assert_eq!((stats.dropped, stats.parked), (0, 0), "the file has them");

    // Parked across a restart, and listed with their reason.
    let usage = crate::kit::usage(&wall).build().unwrap();
    let takes = Memory::new(|_| Ok(()));
    let file = scratch.file();
    assert_eq!((file.len(), file.is_empty()), (2, false));
    let mut pusher = with_records(&wall, &usage, Limited::day(&takes), Some(file), 0).await;
    assert_eq!(usage.handle().stats().parked, 2);
    pusher.push_closed().await;
    assert_eq!(takes.calls(), 0);
    let parked = pusher.parked();
    let since = sent.duration_since(std::time::UNIX_EPOCH).unwrap();
    let since = since.as_secs();
    let list = parked.list();
    assert!(
        list.iter()
            .all(|parked| parked.reason == ParkReason::MaybeStored { since })
    );

    // One is billed, the other one is not.
    let billed = list[0].record.id.clone();
    let settle = parked.settle(Settlement::Billed, |parked| parked.record.id == billed);
    assert_eq!(settle.await.unwrap(), 1);
    let settle = parked.settle(Settlement::PushAgain, |_| true);
    assert_eq!(settle.await.unwrap(), 1);
    drop((pusher, parked));
    let usage = crate::kit::usage(&wall).build().unwrap();
    let file = Some(scratch.file());
    let mut pusher = with_records(&wall, &usage, Limited::day(&takes), file, 0).await;
    let report = pusher.push_closed().await;
    assert_eq!((report.pushed, report.waiting, report.parked), (1, 0, 0));
    assert_eq!(takes.taken()[0], list[1].record);
    drop(pusher);
    assert!(scratch.file().is_empty());

    let told = snapshotter.snapshot().into_vec();
    let parked = told.iter().find(|(key, ..)| {
        key.key().name() == telemetry::USAGE_RECORDS
            && key
                .key()
                .labels()
                .any(|label| label.value() == "maybe_stored")
    });
    assert_eq!(parked.unwrap().3, DebugValue::Counter(2));
}

#[tokio::test(start_paused = true)]
async fn fault_161_a_push_is_noted_before_it_begins() {
    /// Copies the file as a crash during the push would leave it.
    struct Crash {
        file: PathBuf,
        copy: PathBuf,
    }

    impl UsageSink for Crash {
        async fn push(&self, _: &[UsageRecord]) -> Result<(), PushError> {
            fs::copy(&self.file, &self.copy).unwrap();
            pending().await
        }

        fn remembers(&self) -> Option<Duration> {
            Some(24 * HOUR)
        }
    }

    for waits in [23 * HOUR, 25 * HOUR] {
        let scratch = Scratch::new("crash");
        let copy = Scratch::new("crash-copy");
        let wall = wall();
        let layer = usage(&wall).build().unwrap();
        let file = Some(scratch.file());
        let sink = Crash {
            file: scratch.path(),
            copy: copy.path(),
        };
        let mut pusher = with_records(&wall, &layer, sink, file, 3).await;
        // Cancelled, as by a shutdown.
        pusher.flush(Duration::from_secs(1)).await;
        drop(pusher);
        forward(&wall, waits);
        let is_parked = waits > 24 * HOUR;
        for place in [&scratch, &copy] {
            let layer = usage(&wall).build().unwrap();
            let takes = Memory::new(|_| Ok(()));
            let file = Some(place.file());
            let mut pusher = with_records(&wall, &layer, Limited::day(&takes), file, 0).await;
            let report = pusher.push_closed().await;
            assert_eq!(report.parked == 3, is_parked, "{report:?}");
            assert_eq!(takes.taken().len() == 3, !is_parked);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_push_in_the_future_is_parked() {
    for (ahead, is_parked) in [(60, false), (61, true)] {
        let wall = wall();
        let usage = usage(&wall).build().unwrap();
        let memory = Memory::new(|_| Err(PushError::retry("the answer was lost")));
        let mut pusher = with_records(&wall, &usage, Limited::day(&memory), None, 1).await;
        let begins = wall.now();
        wall.set(begins + Duration::from_secs(ahead));
        pusher.push_closed().await;
        // The clock was ahead, and is corrected.
        wall.set(begins);
        let report = pusher.push_closed().await;
        assert_eq!(report.parked == 1, is_parked, "{report:?}");
        assert_eq!(memory.calls(), if is_parked { 1 } else { 2 });
        let list = pusher.parked().list();
        let is_doubtful = |reason| matches!(reason, ParkReason::MaybeStored { .. });
        assert!(list.iter().all(|parked| is_doubtful(parked.reason)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_clear_answer_parks_nothing() {
    for answer in [PushError::not_stored("busy"), PushError::retry("?")] {
        let is_clear = matches!(
            answer.kind(),
            tower_orgkey_usage::PushErrorKind::NotStored { .. }
        );
        let wall = wall();
        let usage = usage(&wall).build().unwrap();
        let mut calls = 0;
        let memory = Memory::new(move |_| {
            calls += 1;
            if calls < 3 {
                Err(answer.clone())
            } else {
                Ok(())
            }
        });
        let mut pusher = with_records(&wall, &usage, Limited::day(&memory), None, 1).await;
        pusher.push_closed().await;
        forward(&wall, 20 * HOUR);
        pusher.push_closed().await;
        forward(&wall, 20 * HOUR);
        let report = pusher.push_closed().await;
        assert_eq!(
            (report.pushed == 1, report.parked == 0),
            (is_clear, is_clear)
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_clear_answer_keeps_an_earlier_doubt() {
    let wall = wall();
    let usage = usage(&wall).build().unwrap();
    let mut calls = 0;
    let memory = Memory::new(move |_| {
        calls += 1;
        Err(match calls {
            1 => PushError::retry("the answer was lost"),
            2 => PushError::not_stored("busy"),
            _ => PushError::permanent("too old"),
        })
    });
    let mut pusher = with_records(&wall, &usage, Limited::day(&memory), None, 1).await;
    for _ in 0..3 {
        pusher.push_closed().await;
    }
    // The first push may have stored what the meter now rejects.
    let stats = usage.handle().stats();
    assert_eq!((stats.undeliverable, stats.parked), (0, 1));
    let list = pusher.parked().list();
    assert!(matches!(list[0].reason, ParkReason::MaybeStored { .. }));
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_push_has_no_clear_answer() {
    struct Hangs;
    impl UsageSink for Hangs {
        async fn push(&self, _: &[UsageRecord]) -> Result<(), PushError> {
            pending().await
        }

        fn remembers(&self) -> Option<Duration> {
            Some(HOUR)
        }
    }
    // By a shutdown, and by its timeout.
    for deadline in [Duration::from_secs(1), Duration::from_secs(60)] {
        let wall = wall();
        let usage = usage(&wall).build().unwrap();
        let mut pusher = with_records(&wall, &usage, Hangs, None, 1).await;
        pusher.flush(deadline).await;
        forward(&wall, HOUR);
        assert_eq!(pusher.push_closed().await.parked, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn fault_162_old_records_block_no_others() {
    let wall = wall();
    let usage = usage(&wall).build().unwrap();
    let memory = Memory::new(|_| Ok(()));
    let mut pusher = with_records(&wall, &usage, Limited::day(&memory), None, 2).await;
    // One second within, and one beyond: a push takes up to 10 s.
    wall.set(start() + 35 * 24 * HOUR - Duration::from_secs(10));
    read_times(&app(&usage), 1, "key.org_9.k9").await;
    next_minute(&wall);
    let report = pusher.push_closed().await;
    assert_eq!((report.pushed, report.parked), (1, 2), "{report:?}");
    assert_eq!(memory.sums(), sums(&[("org_9", 1)]));
    let stats = usage.handle().stats();
    assert_eq!((stats.parked, stats.too_old), (2, 2));
    let list = pusher.parked().list();
    assert!(
        list.iter()
            .all(|parked| parked.reason == ParkReason::TooOld)
    );

    let settle = pusher.parked().settle(Settlement::Billed, |_| true).await;
    assert_eq!(settle.unwrap(), 2);
    let stats = usage.handle().stats();
    assert_eq!((stats.parked, stats.too_old, stats.settled), (0, 0, 2));
}

#[tokio::test(start_paused = true)]
async fn records_at_the_limit_of_age_are_pushed() {
    let wall = wall();
    let usage = usage(&wall).build().unwrap();
    let memory = Memory::new(|_| Ok(()));
    let mut pusher = with_records(&wall, &usage, Limited::day(&memory), None, 2).await;
    wall.set(start() + 35 * 24 * HOUR - Duration::from_secs(11));
    assert_eq!(pusher.push_closed().await.pushed, 2);
}

#[tokio::test(start_paused = true)]
async fn an_error_about_some_records_is_about_them() {
    let wall = wall();
    let usage = usage(&wall).build().unwrap();
    let memory = Memory::new(|batch| {
        let of = |org: &str| -> Vec<usize> {
            let is = |record: &UsageRecord| record.account.organization().unwrap() == org;
            (0..batch.len())
                .filter(|place| is(&batch[*place]))
                .collect()
        };
        if !of("org_3").is_empty() {
            return Err(PushError::park("no customer", of("org_3")));
        }
        // Stores the others.
        match of("org_5") {
            failed if failed.is_empty() || batch.len() == 1 => Ok(()),
            failed => Err(PushError::not_stored("alone, please").only(failed)),
        }
    });
    let mut pusher = with_records(&wall, &usage, Limited::day(&memory), None, 7).await;
    let report = pusher.push_closed().await;
    assert_eq!((report.pushed, report.parked, report.waiting), (5, 1, 1));
    assert_eq!(pusher.push_closed().await.pushed, 1);
    assert_eq!(memory.calls(), 3);
    let parked = pusher.parked();
    assert_eq!(parked.list()[0].reason, ParkReason::Held);
    assert_eq!(
        parked.list()[0].record.account.organization().unwrap(),
        "org_3"
    );
    // A record that is still held is parked again.
    let again = parked.settle(Settlement::PushAgain, |_| true);
    assert_eq!(again.await.unwrap(), 1);
    assert_eq!(usage.handle().stats().waiting, 1);
    assert_eq!(pusher.push_closed().await.parked, 1);
}

#[tokio::test(start_paused = true)]
async fn batches_are_no_larger_than_the_sink_takes() {
    let wall = wall();
    let usage = usage(&wall).build().unwrap();
    let memory = Memory::new(|batch| {
        assert!(batch.len() <= 2);
        Ok(())
    });
    let sink = Limited {
        max_batch: Some(2),
        ..Limited::day(&memory)
    };
    let mut pusher = with_records(&wall, &usage, sink, None, 5).await;
    assert_eq!(pusher.push_closed().await.pushed, 5);
    assert_eq!(memory.calls(), 3);
}

#[tokio::test(start_paused = true)]
async fn fault_167_no_push_without_its_note() {
    let scratch = Scratch::new("no-note");
    let wall = wall();
    let usage = usage(&wall).build().unwrap();
    let memory = Memory::new(|_| Ok(()));
    let file = Some(scratch.file());
    let mut pusher = with_records(&wall, &usage, Limited::day(&memory), file, 1).await;
    // The file is rewritten when it is empty, which fails without the directory.
    pusher.push_closed().await;
    fs::remove_dir_all(scratch.directory()).unwrap();
    for _ in 0..2 {
        read_times(&app(&usage), 1, "key.org_1.k1").await;
        next_minute(&wall);
        pusher.push_closed().await;
    }
    let calls = memory.calls();
    let report = pusher.push_closed().await;
    assert!(report.waiting > 0, "{report:?}");
    assert_eq!(memory.calls(), calls, "pushed without a note");
    fs::create_dir_all(scratch.directory()).unwrap();
    forward(&wall, 25 * HOUR);
    let report = pusher.push_closed().await;
    assert_eq!((report.waiting, report.parked), (0, 0), "it was never sent");
    assert_eq!(memory.sums(), sums(&[("org_0", 1), ("org_1", 2)]));
}

#[tokio::test(start_paused = true)]
async fn parked_records_are_bounded() {
    let wall = wall();
    let usage = usage(&wall).build().unwrap();
    let memory = Memory::new(|_| Err(PushError::park("no customer", [0])));
    let mut pusher = usage
        .handle()
        .pusher(Limited::day(&memory))
        .max_waiting(3)
        .build()
        .unwrap();
    read_times(&app(&usage), 9, "key.org_2.k1").await;
    for minute in 0..5 {
        read_times(&app(&usage), minute + 1, "key.org_1.k1").await;
        forward(&wall, MINUTE);
        pusher.push_closed().await;
    }
    let stats = usage.handle().stats();
    assert_eq!((stats.parked, stats.dropped), (3, 3));
    let kept: Vec<u64> = pusher
        .parked()
        .list()
        .iter()
        .map(|parked| parked.record.counts.requests())
        .collect();
    assert_eq!(kept, [9, 4, 5], "the oldest of the largest account go");
    drop(pusher);
    assert_eq!(usage.handle().stats().dropped, 6, "without a file");
}

#[tokio::test(start_paused = true)]
async fn notes_do_not_fill_the_file() {
    let scratch = Scratch::new("notes");
    let wall = wall();
    let busy = || Memory::new(|_| Err(PushError::defer("busy", 0..500)));
    let layer = usage(&wall).build().unwrap();
    let lost = Memory::new(|_| Err(PushError::retry("the answer was lost")));
    let file = Some(scratch.file());
    let mut pusher = with_records(&wall, &layer, Limited::day(&lost), file, 200).await;
    pusher.push_closed().await;
    drop(pusher);
    let layer = usage(&wall).build().unwrap();
    let file = Some(scratch.file());
    let mut pusher = with_records(&wall, &layer, Limited::day(&busy()), file, 300).await;
    // Each push is noted twice, for 300 records. The file is rewritten at 10,000, also across a restart.
    let notes = || {
        let text = fs::read_to_string(scratch.path()).unwrap();
        text.matches("\"sent\"").count()
    };
    for call in 1..=40 {
        pusher.push_closed().await;
        assert!(notes() <= 19, "{} notes", notes());
        if call == 12 {
            assert_eq!(notes(), 13);
            drop(pusher);
            let layer = usage(&wall).build().unwrap();
            let file = Some(scratch.file());
            pusher = with_records(&wall, &layer, Limited::day(&busy()), file, 0).await;
        }
    }
    drop(pusher);
    // The first push is still noted.
    forward(&wall, 25 * HOUR);
    let layer = usage(&wall).build().unwrap();
    let takes = Memory::new(|_| Ok(()));
    let file = Some(scratch.file());
    let mut pusher = with_records(&wall, &layer, Limited::day(&takes), file, 0).await;
    let report = pusher.push_closed().await;
    assert_eq!((report.pushed, report.parked), (300, 200));
}

#[tokio::test(start_paused = true)]
async fn a_rewritten_file_keeps_parked_records() {
    let scratch = Scratch::new("rewritten");
    let wall = wall();
    let layer = usage(&wall).build().unwrap();
    let memory = Memory::new(
        |batch| match batch[0].account.organization().unwrap().as_str() {
            "org_0" => Err(PushError::park("no customer", [0])),
            _ => Ok(()),
        },
    );
    let file = Some(scratch.file());
    let mut pusher = with_records(&wall, &layer, Limited::day(&memory), file, 1).await;
    pusher.push_closed().await;
    // Until the file is rewritten, at 10,000 removed records and notes.
    let mut sizes = Vec::new();
    for _ in 0..30 {
        for key in 0..200 {
            read_times(&app(&layer), 1, &format!("key.org_1.k{key}")).await;
        }
        next_minute(&wall);
        pusher.push_closed().await;
        sizes.push(fs::metadata(scratch.path()).unwrap().len());
    }
    assert!(!sizes.is_sorted(), "it was never rewritten: {sizes:?}");
    assert_eq!(memory.sums(), sums(&[("org_1", 6_000)]));
    drop(pusher);
    assert_eq!(scratch.file().len(), 1);
}
