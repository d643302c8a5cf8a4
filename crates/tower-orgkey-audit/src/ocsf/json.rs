//! Appends JSON to a buffer.

use std::ops::Range;

use serde_json::Value;

/// JSON that is written piece by piece.
pub(super) struct Json<'a> {
    pub(super) out: &'a mut Vec<u8>,
    /// What was written of each [`Field`], in order. `None` without a template.
    marks: Option<&'a mut Vec<Mark>>,
}

/// A part of an event that differs between events of the same shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Field {
    // The numbers come first: their places are indexes.
    Sequence,
    Time,
    EndTime,
    Duration,
    BodyLength,
    BodyDuration,
    RequestId,
    /// The contents of `src_endpoint`.
    Endpoint,
    /// The object `user`.
    User,
}

/// Where a field was written.
#[derive(Clone, Debug)]
pub(super) struct Mark {
    pub(super) field: Field,
    pub(super) at: Range<usize>,
}

/// A part of the buffer that was written.
#[derive(Clone, Copy)]
pub(super) struct Written {
    start: usize,
    end: usize,
}

impl<'a> Json<'a> {
    pub(super) fn new(out: &'a mut Vec<u8>) -> Self {
        Self { out, marks: None }
    }

    /// Also notes where each field is written.
    pub(super) fn marking(out: &'a mut Vec<u8>, marks: &'a mut Vec<Mark>) -> Self {
        let marks = Some(marks);
        Self { out, marks }
    }

    /// Appends a field.
    #[inline]
    pub(super) fn field<T>(&mut self, field: Field, write: impl FnOnce(&mut Self) -> T) -> T {
        let start = self.out.len();
        let written = write(self);
        if let Some(marks) = &mut self.marks {
            let at = start..self.out.len();
            marks.push(Mark { field, at });
        }
        written
    }

    /// Appends JSON as it is.
    #[inline]
    pub(super) fn raw(&mut self, json: &str) {
        self.out.extend_from_slice(json.as_bytes());
    }

    pub(super) fn number(&mut self, number: u64) -> Written {
        self.plain(itoa::Buffer::new().format(number).as_bytes())
    }

    /// Appends a text that needs no escapes, without quotes.
    #[inline]
    pub(super) fn plain(&mut self, text: &[u8]) -> Written {
        let start = self.out.len();
        self.out.extend_from_slice(text);
        Written {
            start,
            end: self.out.len(),
        }
    }

    /// Appends the contents of a string, without quotes.
    #[inline]
    pub(super) fn text(&mut self, text: &str) -> Written {
        if is_plain(text.as_bytes()) {
            self.plain(text.as_bytes())
        } else {
            self.escaped(text)
        }
    }

    #[cold]
    fn escaped(&mut self, text: &str) -> Written {
        let quoted = Value::from(text).to_string();
        self.plain(&quoted.as_bytes()[1..quoted.len() - 1])
    }

    /// Appends again what was written.
    pub(super) fn again(&mut self, written: Written) {
        self.out.extend_from_within(written.start..written.end);
    }
}

/// Whether no byte has to be escaped. Eight bytes at a time: texts are short, and almost all of them are plain.
pub(super) fn is_plain(bytes: &[u8]) -> bool {
    const fn all(byte: u8) -> u64 {
        u64::from_ne_bytes([byte; 8])
    }
    // The highest bit of a byte is set if the byte is below a bound. Carries can set only further bits.
    let below = |eight: u64, bound: u8| eight.wrapping_sub(all(bound)) & !eight & all(0x80);
    let special = |eight: &[u8; 8]| {
        let eight = u64::from_ne_bytes(*eight);
        below(eight, 0x20) | below(eight ^ all(b'"'), 1) | below(eight ^ all(b'\\'), 1)
    };
    match bytes.last_chunk() {
        Some(last) => {
            let all = bytes.as_chunks().0.iter().chain([last]);
            all.fold(0, |found, eight| found | special(eight)) == 0
        }
        None => bytes
            .iter()
            .all(|byte| *byte >= 0x20 && *byte != b'"' && *byte != b'\\'),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_escaped() {
        for text in [
            "",
            "plain",
            "é/{id} and more",
            "a\"b\\c\u{0}\u{1f}\n\t\u{7f}",
        ] {
            let mut out = Vec::from("[\"");
            let mut json = Json::new(&mut out);
            let written = json.text(text);
            json.raw("\",\"");
            json.again(written);
            json.raw("\"]");
            let read: [String; 2] = serde_json::from_slice(&out).unwrap();
            assert_eq!(read, [text, text]);
        }
    }

    #[test]
    fn special_bytes_are_found_everywhere() {
        for length in 1..40 {
            for at in 0..length {
                for byte in 0..=u8::MAX {
                    let mut bytes = vec![b'x'; length];
                    bytes[at] = byte;
                    let is_special = byte < 0x20 || byte == b'"' || byte == b'\\';
                    assert_eq!(is_plain(&bytes), !is_special, "{byte} at {at} of {length}");
                }
            }
        }
    }
}
