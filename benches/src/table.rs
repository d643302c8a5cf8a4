//! Tables in Markdown, for `BENCHMARKS.md`.

/// Prints a table: the first column has text, the others numbers.
pub(crate) fn print(title: &str, columns: &[&str], rows: &[Vec<String>]) {
    println!("\n### {title}\n");
    println!("| {} |", columns.join(" | "));
    println!("|---{}|", "|---:".repeat(columns.len() - 1));
    for row in rows {
        println!("| {} |", row.join(" | "));
    }
}

pub(crate) fn ratio(of: f64, to: f64) -> String {
    format!("{:.2}", of / to)
}

/// The median of an odd number of measurements.
pub(crate) fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of[of.len() / 2]
}
