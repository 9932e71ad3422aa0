//! How the demo writes figures and findings.

use exchequer_event::v1;

use super::stage::note;
use crate::evidence::report::Report;

/// Microseconds as milliseconds.
#[allow(clippy::cast_precision_loss)]
pub fn ms(micros: u64) -> f64 {
    micros as f64 / 1000.0
}

/// Lines of somebody else.
pub fn indent(text: &str) -> String {
    text.lines().map(|line| format!("  | {line}")).collect::<Vec<_>>().join(
        "
",
    )
}

/// Balances, one a line.
pub fn balances(balances: &[v1::Balance]) -> String {
    let line = |b: &v1::Balance| {
        format!(
            "{:<13} granted {:>9}  available {:>9}  held {:>8}  spent {:>8}  debt {}",
            b.meter, b.granted, b.available, b.held, b.spent, b.debt
        )
    };
    balances.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// What a verification found.
pub fn faults(report: &Report) {
    for fault in &report.faults {
        let place =
            fault.index.map_or_else(String::new, |index| format!("entry {index} ({}): ", fault.entry));
        note(format!("{place}{}", fault.detail));
        if let (Some(expected), Some(found)) = (&fault.expected, &fault.found) {
            note(format!("  expected {expected}\n  found    {found}"));
        }
    }
}
