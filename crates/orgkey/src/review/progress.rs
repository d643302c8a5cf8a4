//! How far the audit files are read.

use std::io::{IsTerminal as _, Stderr, Write};
use std::time::{Duration, Instant};

const INTERVAL: Duration = Duration::from_millis(200);

/// A line on the standard error, if that is a terminal.
pub(super) struct ProgressBar<W> {
    out: W,
    whole: u64,
    is_shown: bool,
    shown_at: Option<Instant>,
}

impl ProgressBar<Stderr> {
    /// Returns a bar for so many bytes.
    pub(super) fn on_terminal(whole: u64) -> Self {
        let out = std::io::stderr();
        let is_shown = out.is_terminal();
        Self::new(out, whole, is_shown)
    }
}

impl<W: Write> ProgressBar<W> {
    fn new(out: W, whole: u64, is_shown: bool) -> Self {
        Self {
            out,
            whole,
            is_shown,
            shown_at: None,
        }
    }

    /// Shows how much is read, at most five times a second.
    pub(super) fn show(&mut self, lines: u64, bytes: u64) {
        let is_due = self.shown_at.is_none_or(|at| at.elapsed() >= INTERVAL);
        if self.is_shown && is_due {
            self.shown_at = Some(Instant::now());
            let percent = u128::from(bytes) * 100 / u128::from(self.whole.max(1));
            // The terminal may be gone.
            let _ = write!(self.out, "\r{percent} %, {lines} lines");
            let _ = self.out.flush();
        }
    }

    /// Clears the line.
    pub(super) fn end(&mut self) {
        if self.is_shown {
            let _ = write!(self.out, "\r\x1b[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(is_terminal: bool) -> String {
        let mut out = Vec::new();
        let mut bar = ProgressBar::new(&mut out, 4_000, is_terminal);
        bar.show(2, 1_000);
        // Too soon, however long the lines above have taken.
        bar.shown_at = bar.shown_at.map(|_| Instant::now() + INTERVAL);
        bar.show(3, 1_500);
        bar.shown_at = Instant::now().checked_sub(INTERVAL);
        bar.show(8, 4_000);
        bar.end();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn terminal_shows_how_much_is_read() {
        assert_eq!(shown(true), "\r25 %, 2 lines\r100 %, 8 lines\r\x1b[K");
    }

    #[test]
    fn nothing_is_written_to_a_pipe() {
        assert_eq!(shown(false), "");
    }
}
