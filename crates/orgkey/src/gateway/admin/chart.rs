//! Charts of the last hour as SVG.

use std::fmt::Write as _;

use maud::{Markup, html};

use crate::gateway::recent::MINUTES;

/// The width of the bar of a minute, with the gap behind it.
const STEP: usize = 4;
const WIDTH: usize = MINUTES * STEP;
const HEIGHT: u64 = 32;

/// Draws a bar for each minute. The highest one is as high as the chart, and a chart without counts has the base line alone.
pub(super) fn bars(label: &str, counts: &[u64; MINUTES]) -> Markup {
    let most = counts.iter().copied().max().unwrap_or_default();
    let mut bars = String::new();
    for (minute, count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
        // A count that is not zero is visible.
        let height = scaled(*count, most).max(1);
        let x = minute * STEP;
        // Writing to a string cannot fail.
        let _ = write!(bars, "M{x} {HEIGHT}v-{height}h3v{height}z");
    }
    html! {
        svg viewBox={ "0 0 " (WIDTH) " " (HEIGHT + 1) } width=(WIDTH) height=(HEIGHT + 1) role="img"
            aria-label={ (label) ": at most " (most) " in a minute" } {
            path .base d={ "M0 " (HEIGHT) "h" (WIDTH) "v1H0z" } {}
            path .bar d=(bars) {}
        }
    }
}

/// Draws a share of the whole.
pub(super) fn share(part: u64, whole: u64) -> Markup {
    let width = u128::from(part) * 100 / u128::from(whole.max(1));
    html! {
        svg viewBox="0 0 100 8" width="100" height="8" aria-hidden="true" {
            path .base d="M0 7h100v1H0z" {}
            path .bar d={ "M0 0h" (width) "v8H0z" } {}
        }
    }
}

fn scaled(count: u64, most: u64) -> u64 {
    let height = u128::from(count) * u128::from(HEIGHT) / u128::from(most.max(1));
    u64::try_from(height).unwrap_or(HEIGHT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_scaled_to_the_highest() {
        let mut counts = [0; MINUTES];
        assert!(!bars("x", &counts).into_string().contains("M0 32v-"));
        counts[0] = u64::MAX;
        counts[1] = u64::MAX / 2;
        counts[59] = 1;
        let drawn = bars("x", &counts).into_string();
        for bar in ["M0 32v-32h3v32z", "M4 32v-15h3v15z", "M236 32v-1h3v1z"] {
            assert!(drawn.contains(bar), "{bar} {drawn}");
        }
    }
}
