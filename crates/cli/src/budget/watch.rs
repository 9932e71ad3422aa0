//! `exchequer budget watch`: balances as they change.
//!
//! Left out: history; what changed between two messages is seen as one change. Invariant: after every message the rows are what metering
//! said last, also across a connection that was lost.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, IsTerminal as _, Write as _},
    process::ExitCode,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use exchequer_event::v1::{self, Window};
use serde_json::json;
use tonic::Code;

use super::{
    set::{HEAD, rows},
    words::word,
};
use crate::{
    client::{self, Connection},
    describe::{self, utc},
    print::{self, Format},
};

/// Wait before a connection that was lost is made again; doubled up to [`MAX_RETRY`].
const RETRY: Duration = Duration::from_millis(500);
const MAX_RETRY: Duration = Duration::from_secs(8);
/// Budgets that a first message has at most: one with so many may lack others.
const MAX_FIRST: usize = 1000;

/// Arguments of `budget watch`.
#[derive(clap::Args)]
pub struct Watch {
    /// The scope: it and all below it are watched
    #[arg(value_name = "SCOPE")]
    scope: String,
    /// End after so many messages
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    #[command(flatten)]
    connection: Connection,
}

/// Scope, window and meter.
type Place = (String, i32, String);

/// What is known of a budget.
#[derive(Clone, Debug, PartialEq)]
struct Row {
    balance: v1::Balance,
    cells: [String; 8],
}

/// All that is watched.
#[derive(Debug, Default)]
struct Seen {
    rows: BTreeMap<Place, Row>,
}

/// One row that changed; none of a budget that was removed.
#[derive(Debug, PartialEq)]
struct Changed {
    place: Place,
    balance: Option<v1::Balance>,
}

impl Seen {
    /// Takes a message; the first after a connection was made says all that there is.
    fn take(&mut self, message: &v1::WatchBudgetsResponse, is_first: bool) -> Vec<Changed> {
        let mut changed = Vec::new();
        let mut named: BTreeSet<(String, i32)> = BTreeSet::new();
        for budget in &message.budgets {
            named.insert((budget.scope.clone(), budget.window));
            let mut meters = BTreeSet::new();
            for (balance, cells) in budget.balances.iter().zip(rows(budget)) {
                meters.insert(balance.meter.clone());
                let place = (budget.scope.clone(), budget.window, balance.meter.clone());
                let row = Row { balance: balance.clone(), cells };
                let old = self.rows.insert(place.clone(), row);
                if old.is_none_or(|old| old.balance != *balance) {
                    changed.push(Changed { place, balance: Some(balance.clone()) });
                }
            }
            let is_gone = |(scope, window, meter): &Place| {
                *scope == budget.scope && *window == budget.window && !meters.contains(meter)
            };
            // Budgets of one scope and window may come in several parts, if their settings differ.
            let parts = message.budgets.iter();
            let parts =
                parts.filter(|part| part.scope == budget.scope && part.window == budget.window).count();
            if parts == 1 {
                self.remove(is_gone, &mut changed);
            }
        }
        for removed in &message.removed {
            let is_gone = |(scope, window, meter): &Place| {
                *scope == removed.scope
                    && *window == removed.window
                    && (removed.meters.is_empty() || removed.meters.contains(meter))
            };
            self.remove(is_gone, &mut changed);
        }
        if is_first && message.budgets.len() < MAX_FIRST {
            let is_gone = |(scope, window, _): &Place| !named.contains(&(scope.clone(), *window));
            self.remove(is_gone, &mut changed);
        }
        changed
    }

    fn remove(&mut self, is_gone: impl Fn(&Place) -> bool, changed: &mut Vec<Changed>) {
        self.rows.retain(|place, _| {
            let gone = is_gone(place);
            if gone {
                changed.push(Changed { place: place.clone(), balance: None });
            }
            !gone
        });
    }

    /// The table that fits on a screen of so many lines.
    fn table(&self, scope: &str, stream_seq: u64, lines: usize) -> String {
        let mut widths = HEAD.map(str::len);
        for row in self.rows.values() {
            for (width, cell) in widths.iter_mut().zip(&row.cells) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let line = |cells: [&str; 8]| {
            let mut text = String::new();
            for (place, (cell, width)) in cells.into_iter().zip(widths).enumerate() {
                let fill = " ".repeat(width - cell.chars().count());
                // Names to the left, numbers to the right.
                let (first, second) = if place < 3 { (cell, fill.as_str()) } else { (fill.as_str(), cell) };
                text.extend([first, second, "  "]);
            }
            text.trim_end().to_owned()
        };
        let mut text = vec![format!("{scope}: up to stream sequence {stream_seq}"), line(HEAD)];
        let room = lines.saturating_sub(4).max(1);
        text.extend(self.rows.values().take(room).map(|row| line(row.cells.each_ref().map(String::as_str))));
        if self.rows.len() > room {
            text.push(format!("and {} more, which the screen has no room for", self.rows.len() - room));
        }
        text.join("\n")
    }
}

impl Changed {
    fn line(&self, now_ms: u64) -> String {
        let (scope, window, meter) = &self.place;
        let what = format!("{}  {scope}  {}  {meter}", utc(now_ms), word::<Window>(*window));
        match &self.balance {
            Some(v1::Balance { granted, available, held, spent, debt, .. }) => {
                format!(
                    "{what}  granted={granted} available={available} held={held} spent={spent} debt={debt}"
                )
            }
            None => format!("{what}  removed"),
        }
    }

    fn json(&self, now_ms: u64, stream_seq: u64) -> serde_json::Value {
        let (scope, window, _) = &self.place;
        let mut json = json!({
            "time_unix_ms": now_ms,
            "stream_seq": stream_seq,
            "scope": scope,
            "window": word::<Window>(*window),
            "meter": self.place.2,
            "removed": self.balance.is_none(),
        });
        if let Some(balance) = &self.balance {
            json["balance"] = describe::to_json("Balance", balance);
        }
        json
    }
}

/// Where it is shown.
enum Shown {
    Screen,
    Lines,
    Json,
}

impl Watch {
    /// Runs until it is stopped, or until so many messages.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let shown = match self.format {
            Format::Json => Shown::Json,
            Format::Text if io::stdout().is_terminal() => Shown::Screen,
            Format::Text => Shown::Lines,
        };
        let (mut seen, mut left, mut retry) = (Seen::default(), self.count.unwrap_or(u64::MAX), RETRY);
        let mut was_there = false;
        while left > 0 {
            let why = match self.follow(&shown, &mut seen, &mut left, &mut retry, &mut was_there).await {
                Ok(()) => "metering ended the stream".to_owned(),
                // What was never there is not waited for, and a refusal stays one.
                Err(error) if !was_there || !is_passing(&error) => return Err(error),
                Err(error) => match error.downcast_ref::<tonic::Status>() {
                    Some(status) => client::explain(status),
                    None => format!("{error:#}"),
                },
            };
            if left > 0 {
                print::remark(&format!("metering is away, and is asked again: {why}"));
                tokio::time::sleep(retry).await;
                retry = (retry * 2).min(MAX_RETRY);
            }
        }
        Ok(ExitCode::SUCCESS)
    }

    async fn follow(
        &self,
        shown: &Shown,
        seen: &mut Seen,
        left: &mut u64,
        retry: &mut Duration,
        was_there: &mut bool,
    ) -> anyhow::Result<()> {
        let mut client = self.connection.metering().await?;
        let request = v1::WatchBudgetsRequest { scope: self.scope.clone() };
        let mut messages = client.watch_budgets(request).await?.into_inner();
        let mut is_first = true;
        while let Some(message) = messages.message().await? {
            (*was_there, *retry) = (true, RETRY);
            let changed = seen.take(&message, std::mem::take(&mut is_first));
            self.show(shown, seen, &changed, message.stream_seq)?;
            *left -= 1;
            if *left == 0 {
                break;
            }
        }
        Ok(())
    }

    fn show(&self, shown: &Shown, seen: &Seen, changed: &[Changed], stream_seq: u64) -> io::Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let now_ms = u64::try_from(now).unwrap_or(u64::MAX);
        match shown {
            Shown::Screen => {
                let lines = rustix::termios::tcgetwinsize(io::stdout()).map_or(24, |size| size.ws_row.into());
                let table = seen.table(&self.scope, stream_seq, lines).replace('\n', "\x1b[K\n");
                let mut out = io::stdout().lock();
                write!(out, "\x1b[H{table}\x1b[K\n\x1b[J")?;
                out.flush()
            }
            Shown::Lines => changed.iter().try_for_each(|changed| print::text(&changed.line(now_ms))),
            Shown::Json => {
                changed.iter().try_for_each(|changed| print::json(&changed.json(now_ms, stream_seq)))
            }
        }
    }
}

/// Whether the same may succeed later: the connection, and not the question, was at fault.
fn is_passing(error: &anyhow::Error) -> bool {
    let Some(status) = error.downcast_ref::<tonic::Status>() else { return true };
    matches!(
        status.code(),
        Code::Unavailable
            | Code::Unknown
            | Code::Cancelled
            | Code::Aborted
            | Code::DeadlineExceeded
            | Code::Internal
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(scope: &str, meters: &[(&str, u64)]) -> v1::Budget {
        let balances = meters.iter().map(|(meter, spent)| v1::Balance {
            meter: (*meter).into(),
            granted: 10,
            available: 10 - spent,
            spent: *spent,
            ..v1::Balance::default()
        });
        v1::Budget {
            scope: scope.into(),
            window: Window::Day.into(),
            balances: balances.collect(),
            ..Default::default()
        }
    }

    fn message(budgets: Vec<v1::Budget>) -> v1::WatchBudgetsResponse {
        v1::WatchBudgetsResponse { budgets, stream_seq: 7, ..Default::default() }
    }

    fn lines(changed: &[Changed]) -> Vec<String> {
        changed
            .iter()
            .map(|changed| changed.line(0)["1970-01-01T00:00:00.000Z  ".len()..].to_owned())
            .collect()
    }

    #[test]
    fn only_what_changed_is_said() {
        let mut seen = Seen::default();
        let first = message(vec![budget("a", &[("x", 0), ("y", 0)]), budget("a/b", &[("x", 1)])]);
        assert_eq!(seen.take(&first, true).len(), 3);
        assert_eq!(seen.take(&message(first.budgets.clone()), false), []);
        let changed = seen.take(&message(vec![budget("a", &[("x", 4), ("y", 0)])]), false);
        assert_eq!(lines(&changed), ["a  day  x  granted=10 available=6 held=0 spent=4 debt=0"]);
        assert_eq!(changed[0].json(5, 7)["balance"]["spent"], 4);
        // A meter that is no longer among its budget's, and a budget that is removed.
        assert_eq!(
            lines(&seen.take(&message(vec![budget("a", &[("x", 4)])]), false)),
            ["a  day  y  removed"]
        );
        let removed = v1::BudgetRemoved { scope: "a/b".into(), window: Window::Day.into(), meters: vec![] };
        let changed =
            seen.take(&v1::WatchBudgetsResponse { removed: vec![removed], ..Default::default() }, false);
        assert_eq!(lines(&changed), ["a/b  day  x  removed"]);
        assert_eq!(seen.rows.len(), 1);
    }

    #[test]
    fn after_a_lost_connection_what_was_removed_meanwhile_goes() {
        let mut seen = Seen::default();
        seen.take(&message(vec![budget("a", &[("x", 0)]), budget("b", &[("x", 0)])]), true);
        let changed = seen.take(&message(vec![budget("b", &[("x", 2)])]), true);
        assert_eq!(
            lines(&changed),
            ["b  day  x  granted=10 available=8 held=0 spent=2 debt=0", "a  day  x  removed"]
        );
    }

    #[test]
    fn budgets_in_parts_are_one() {
        let mut seen = Seen::default();
        let parts = message(vec![budget("a", &[("x", 0)]), budget("a", &[("y", 0)])]);
        assert_eq!((seen.take(&parts, true).len(), seen.rows.len()), (2, 2));
        assert_eq!(seen.take(&parts, false), []);
    }

    #[test]
    fn a_table_takes_no_more_than_the_screen() {
        let mut seen = Seen::default();
        let budgets = (0..30).map(|n| budget(&format!("acme/s{n:02}"), &[("cpu_ms", n % 10)]));
        seen.take(&message(budgets.collect()), true);
        let table = seen.table("acme", 7, 12);
        let lines: Vec<_> = table.lines().collect();
        assert_eq!(lines.len(), 11);
        assert_eq!(lines[1], "SCOPE     WINDOW  METER   GRANTED  AVAILABLE  HELD  SPENT  DEBT");
        assert_eq!(lines[3], "acme/s01  day     cpu_ms       10          9     0      1     0");
        assert_eq!(lines[10], "and 22 more, which the screen has no room for");
    }
}
