//! Timestamps, random strings and base64url.

use std::time::{Duration, SystemTime};

/// Formats a time as `2024-11-18T13:32:03+11`: local time with an hour-only offset, which RFC 3339 does not allow but Kinde
/// documents.
pub(crate) fn timestamp(at: SystemTime) -> String {
    const OFFSET: Duration = Duration::from_secs(11 * 60 * 60);
    let seconds = at
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .saturating_add(OFFSET)
        .as_secs();
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}+11",
        second / 3_600,
        second / 60 % 60,
        second % 60
    )
}

/// Converts days since 1 January 1970 to year, month and day. Years are counted from March, so that the leap day is the last
/// day of a year.
fn civil(days: u64) -> (u64, u64, u64) {
    const DAYS_OF_400_YEARS: u64 = 146_097;
    // Days from 1 March of the year 0 to 1 January 1970.
    let days = days + 719_468;
    let cycle = days / DAYS_OF_400_YEARS;
    let day_of_cycle = days % DAYS_OF_400_YEARS;
    let year_of_cycle = (day_of_cycle - day_of_cycle / 1_460 + day_of_cycle / 36_524
        - day_of_cycle / 146_096)
        / 365;
    let day_of_year =
        day_of_cycle - (365 * year_of_cycle + year_of_cycle / 4 - year_of_cycle / 100);
    // From March on, every five months have 153 days.
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = 400 * cycle + year_of_cycle + u64::from(month <= 2);
    (year, month, day)
}

pub(crate) const LOWER: &[u8; 32] = b"abcdefghijkmnopqrstuvwxyz2345678";
pub(crate) const HEX: &[u8; 32] = b"0123456789abcdef0123456789abcdef";

/// Returns `length` random characters of the alphabet.
///
/// # Panics
///
/// Panics if the operating system's random source fails.
pub(crate) fn random(alphabet: &[u8; 32], length: usize) -> String {
    let mut bytes = vec![0; length];
    if let Err(error) = getrandom::fill(&mut bytes) {
        panic!("the operating system's random source failed: {error}");
    }
    bytes
        .iter()
        .map(|byte| char::from(alphabet[usize::from(byte % 32)]))
        .collect()
}

/// Encodes base64url without padding (RFC 4648 §5), as in a JWT.
pub(crate) fn base64url(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let group = chunk.iter().enumerate().fold(0_u32, |group, (at, byte)| {
            group | u32::from(*byte) << (16 - 8 * at)
        });
        for at in 0..=chunk.len() {
            let index = group >> (18 - 6 * at) & 63;
            text.push(char::from(ALPHABET[index as usize]));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_have_an_hour_only_offset() {
        let at = |seconds| timestamp(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "1970-01-01T11:00:00+11");
        assert_eq!(at(1_731_897_123), "2024-11-18T13:32:03+11");
        assert_eq!(at(951_782_399), "2000-02-29T10:59:59+11");
        assert_eq!(at(951_830_000), "2000-03-01T00:13:20+11");
        assert_eq!(at(4_107_538_800), "2100-03-01T10:00:00+11");
        assert_eq!(at(1_798_675_199), "2026-12-31T10:59:59+11");
        assert_eq!(at(1_798_722_000), "2027-01-01T00:00:00+11");
    }

    #[test]
    fn base64url_matches_rfc_4648() {
        for (bytes, text) in [
            ("", ""),
            ("f", "Zg"),
            ("fo", "Zm8"),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg"),
            ("fooba", "Zm9vYmE"),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64url(bytes.as_bytes()), text);
        }
        assert_eq!(base64url(&[0xFF, 0xEF, 0xFE]), "_-_-");
    }
}
