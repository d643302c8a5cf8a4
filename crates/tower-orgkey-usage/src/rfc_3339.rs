//! Times as text.

/// Seconds since the Unix epoch as RFC 3339 writes them, in UTC.
pub(crate) fn rfc_3339(seconds: u64) -> String {
    /// The days of 400 years, after which dates repeat.
    const ERA: u64 = 146_097;

    let (days, time) = (seconds / 86_400, seconds % 86_400);
    // Counted from 1 March 0000, so that a leap day is the last of its year.
    let days = days + 719_468;
    let (era, day) = (days / ERA, days % ERA);
    let year_of_era = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (time / 3_600, time / 60 % 60, time % 60);
    format!("{year:04}-{month:02}-{day_of_month:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn times_are_rfc_3339(seconds in 0_u64..=253_402_207_200) {
            let timestamp = jiff::Timestamp::from_second(i64::try_from(seconds).unwrap()).unwrap();
            prop_assert_eq!(rfc_3339(seconds), timestamp.to_string());
        }
    }
}
