//! A file for lines of logs, which leaves nothing behind.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};

/// Written over from its start after this many bytes. A virtual machine may get each page of a growing file from its host
/// at the first write, which can take longer than all the rest that is measured here.
const LEN: u64 = 64 * 1024 * 1024;

pub(crate) struct LogFile {
    file: File,
    written: AtomicU64,
}

impl LogFile {
    pub(super) fn new() -> Self {
        let path = std::env::temp_dir().join(format!("orgkey-bench-{}.jsonl", std::process::id()));
        let file = File::create(&path).expect("a temporary file");
        std::fs::remove_file(&path).expect("a file that was just created");
        Self {
            file,
            written: AtomicU64::new(0),
        }
    }
}

impl Write for &LogFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let at = self
            .written
            .fetch_add(bytes.len() as u64, Ordering::Relaxed);
        self.file.write_all_at(bytes, at % LEN)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Write for LogFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&*self).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
