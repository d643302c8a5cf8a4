//! Times in milliseconds, and the days and weeks they belong to.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The milliseconds of a day.
pub(crate) const DAY: u64 = 24 * 60 * 60 * 1_000;

/// A time in milliseconds since 1970. It is serialized as an RFC 3339 timestamp in UTC.
///
/// ```
/// use tower_orgkey_review::UnixMillis;
///
/// let time: UnixMillis = "2026-03-01T12:00:00+01".parse().unwrap();
/// assert_eq!(time.to_string(), "2026-03-01T11:00:00Z");
/// assert_eq!(time.date(), "2026-03-01");
/// assert!("yesterday".parse::<UnixMillis>().is_err());
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixMillis(pub u64);

/// A text is not a timestamp. Returned when [`UnixMillis`] is parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a timestamp after 1970")]
pub struct InvalidTime;

impl UnixMillis {
    /// Returns the current time of the machine.
    pub fn now() -> Self {
        Self::from(SystemTime::now())
    }

    /// Returns the date in UTC, such as `2026-03-01`.
    pub fn date(self) -> String {
        let text = self.to_string();
        text.split('T').next().unwrap_or_default().to_owned()
    }

    /// Returns the whole days from another time until this one.
    pub(crate) fn days_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0) / DAY
    }
}

impl From<SystemTime> for UnixMillis {
    fn from(time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }
}

impl std::str::FromStr for UnixMillis {
    type Err = InvalidTime;

    fn from_str(text: &str) -> Result<Self, InvalidTime> {
        let time: jiff::Timestamp = text.parse().map_err(|_| InvalidTime)?;
        let millis = u64::try_from(time.as_millisecond()).map_err(|_| InvalidTime)?;
        Ok(Self(millis))
    }
}

impl fmt::Display for UnixMillis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = i64::try_from(self.0).unwrap_or(i64::MAX);
        let time = jiff::Timestamp::from_millisecond(millis).unwrap_or(jiff::Timestamp::MAX);
        time.fmt(f)
    }
}

impl Serialize for UnixMillis {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for UnixMillis {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Returns the number of the day since 1970.
pub(crate) fn day(millis: u64) -> u32 {
    u32::try_from(millis / DAY).unwrap_or(u32::MAX)
}

/// Returns the number of the week. Weeks start on Monday; 1970 began on a Thursday.
pub(crate) fn week(millis: u64) -> u32 {
    day(millis).saturating_add(3) / 7
}

/// Returns the Monday of a week.
pub(crate) fn monday(week: u32) -> UnixMillis {
    UnixMillis((u64::from(week) * 7).saturating_sub(3) * DAY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weeks_start_on_monday() {
        let monday_of: UnixMillis = "2026-03-02T00:00:00Z".parse().unwrap();
        let sunday: UnixMillis = "2026-03-01T23:59:59.999Z".parse().unwrap();
        assert_eq!(monday(week(monday_of.0)), monday_of);
        assert_eq!(week(sunday.0) + 1, week(monday_of.0));
    }

    #[test]
    fn times_beyond_the_calendar_do_not_panic() {
        assert!(UnixMillis(u64::MAX).to_string().starts_with("9999-"));
        assert!("1969-12-31T00:00:00Z".parse::<UnixMillis>().is_err());
    }
}
