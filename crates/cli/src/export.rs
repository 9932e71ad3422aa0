//! `exchequer export`: evidence, carried away.
//!
//! Left out: what is asked and written (`evidence`). Invariant: exit status 0 says that what was written is whole and verified.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context as _, bail};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    client::{self, Connection, Refused},
    evidence::{
        export::{
            self, ExportError, Exported, Format, Request,
            follow::{Follow, Happened, follow},
        },
        pack::{Scope, TimeRange},
        verify,
    },
    print,
    progress::Shown,
};

/// Write evidence: entries with proofs, and how to verify them without this program
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  exchequer export --tenant acme --out acme.pack
  exchequer export --tenant acme --from 2026-07-01 --until 2026-10-01 --out q3.pack
  exchequer export --range 0..500 --out first.pack
  exchequer export --tenant acme --format ocsf --out acme.ocsf.ndjson    with acme.ocsf.ndjson.proof beside it
  exchequer export --follow segments --format ndjson --every 60          until stopped; the whole log, a role that reads everything

An export that is ended goes on from FILE.partial when it is run again, in the tree of the same checkpoint.
Times are by the authors' clocks: YYYY-MM-DD, YYYY-MM-DDTHH:MM:SSZ (both UTC) or milliseconds since the Unix epoch. Without a tenant, a
time is exported as the range from its first to its last entry.
Exit status: 0 written and verified, 1 the ledger refused or what it gave does not verify, 2 it could not be asked or written.")]
#[command(group = clap::ArgGroup::new("what").args(["tenant", "range", "follow"]))]
pub struct Export {
    /// Everything that belongs to this tenant
    #[arg(long, value_name = "TENANT")]
    tenant: Option<String>,
    /// Every entry from FIRST up to, not including, END
    #[arg(long, value_name = "FIRST..END", value_parser = range, conflicts_with_all = ["from", "until"])]
    range: Option<(u64, u64)>,
    /// Only from this time on
    #[arg(long, value_name = "TIME", value_parser = time)]
    from: Option<u64>,
    /// Only before this time
    #[arg(long, value_name = "TIME", value_parser = time)]
    until: Option<u64>,
    /// Where to; a file that is there is replaced
    #[arg(long, value_name = "FILE", required_unless_present = "follow")]
    out: Option<PathBuf>,
    /// Write the whole log in segments into this directory, go on as it grows, and end with SIGINT or SIGTERM
    #[arg(long, value_name = "DIR", conflicts_with_all = ["out", "from", "until"])]
    follow: Option<PathBuf>,
    /// With --follow: seconds until new entries are written
    #[arg(long, value_name = "SECONDS", default_value = "10", requires = "follow")]
    every: f64,
    /// With --follow: entries that a segment holds at most, and that are written at once
    #[arg(long, value_name = "N", default_value = "100000", requires = "follow", value_parser = clap::value_parser!(u64).range(1..))]
    max_entries: u64,
    /// What to write
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// The log's verifier key, or a file that holds it
    #[arg(long, value_name = "VKEY")]
    key: Option<String>,
    /// How what was done is printed
    #[arg(long, value_enum, default_value_t)]
    report: print::Format,
    #[command(flatten)]
    connection: Connection,
}

fn range(text: &str) -> Result<(u64, u64), String> {
    let (first, end) = text.split_once("..").ok_or("expected FIRST..END")?;
    let number = |text: &str| text.parse::<u64>().map_err(|error| format!("`{text}`: {error}"));
    let (first, end) = (number(first)?, number(end)?);
    if first < end { Ok((first, end)) } else { Err("END has to be above FIRST".into()) }
}

/// Milliseconds since the Unix epoch of a time or date.
pub fn time(text: &str) -> Result<u64, String> {
    if let Ok(ms) = text.parse() {
        return Ok(ms);
    }
    let bad = || "expected YYYY-MM-DD, YYYY-MM-DDTHH:MM:SSZ or milliseconds since the Unix epoch".to_owned();
    let (date, clock) = match text.split_once('T') {
        Some((date, clock)) => (date, clock.strip_suffix('Z').ok_or_else(bad)?),
        None => (text, "00:00:00"),
    };
    let fields = |text: &str, by: char, widths: [usize; 3]| {
        let mut found = [0_u64; 3];
        let mut parts = text.split(by);
        for (place, width) in widths.into_iter().enumerate() {
            let part = parts
                .next()
                .filter(|part| part.len() == width && part.bytes().all(|b| b.is_ascii_digit()))?;
            found[place] = part.parse().ok()?;
        }
        parts.next().is_none().then_some(found)
    };
    let [year, month, day] = fields(date, '-', [4, 2, 2]).ok_or_else(bad)?;
    let [hour, minute, second] = fields(clock, ':', [2, 2, 2]).ok_or_else(bad)?;
    let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days = match month {
        2 => 28 + u64::from(is_leap),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    };
    if year < 1970
        || !(1..=12).contains(&month)
        || !(1..=days).contains(&day)
        || hour > 23
        || minute > 59
        || second > 59
    {
        return Err(bad());
    }
    // Days since 1970, counting years from March so that the leap day is a year's last.
    let (from_march, year) = if month > 2 { (month - 3, year) } else { (month + 9, year - 1) };
    let before =
        365 * year + year / 4 - year / 100 + year / 400 + (153 * from_march + 2) / 5 + day - 1 - 719_468;
    Ok((((before * 24 + hour) * 60 + minute) * 60 + second) * 1000)
}

/// The exit status that an error leads to is that of `main`: refusals are told from all others.
pub fn explained(error: ExportError) -> anyhow::Error {
    match error {
        ExportError::Ledger(status) => (*status).into(),
        ExportError::Answers(_) | ExportError::Unverified(_) => Refused(error.to_string()).into(),
        error => error.into(),
    }
}

impl Export {
    /// Runs it.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let key = match &self.key {
            Some(key) => Some(verify::read_key(key).map_err(anyhow::Error::msg)?),
            None => self.connection.verifier_key()?,
        };
        let client = self.connection.ledger().await?;
        if let Some(dir) = self.follow {
            let every = Duration::try_from_secs_f64(self.every).context("--every")?;
            let request = Follow { dir, format: self.format, key, every, max_entries: self.max_entries };
            return run_follow(client, request, self.report).await;
        }
        let out = self.out.context("--out is required")?;
        let time = (self.from.is_some() || self.until.is_some())
            .then_some(TimeRange { from_unix_ms: self.from, until_unix_ms: self.until });
        if let (Some(from), Some(until)) = (self.from, self.until)
            && from >= until
        {
            bail!("--until has to be after --from");
        }
        let scope = match (self.tenant, self.range) {
            (Some(tenant), _) => Some(Scope::Tenant(tenant)),
            (None, Some((first, end))) => Some(Scope::Range { first, end }),
            (None, None) if time.is_some() => None,
            (None, None) => bail!("--tenant, --range, --from, --until or --follow is required"),
        };
        let request = Request { scope, time, format: self.format, key, continues: None, out: out.clone() };
        let mut shown = Shown::new("exported");
        let exported =
            export::export(client, request, |progress| shown.update(progress.done, progress.total)).await;
        drop(shown);
        let exported = exported.map_err(explained)?;
        print_exported(&out, &exported, self.report)?;
        if self.report == print::Format::Text {
            print::text(&format!(
                "check it anywhere: exchequer verify {} --key {}",
                out.display(),
                exported.log_key
            ))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn print_exported(out: &std::path::Path, exported: &Exported, format: print::Format) -> anyhow::Result<()> {
    match format {
        print::Format::Json => print::json(&json!({
            "out": out,
            "bytes": exported.bytes,
            "entries": exported.entries,
            "resumed": exported.resumed,
            "report": exported.report,
        }))?,
        print::Format::Text => {
            let resumed = match exported.resumed {
                0 => String::new(),
                resumed => format!(" ({resumed} of them were there from an export that was ended)"),
            };
            print::text(&format!(
                "{}: {} entries of {} with their proofs{resumed}, {} bytes, verified",
                out.display(),
                exported.entries,
                exported.origin,
                exported.bytes,
            ))?;
        }
    }
    Ok(())
}

async fn run_follow<T: export::Transport>(
    client: exchequer_event::v1::ledger_service_client::LedgerServiceClient<T>,
    request: Follow,
    format: print::Format,
) -> anyhow::Result<ExitCode> {
    let (mut interrupted, mut terminated) =
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let mut shown = Shown::new("exported");
    let mut printed = Ok(());
    let following = follow(client, request, |happened| match happened {
        Happened::Segment(out, exported) => {
            shown.clear();
            if printed.is_ok() {
                printed = print_exported(out, exported, format);
            }
        }
        Happened::Away(error) => {
            shown.clear();
            let why = match error {
                ExportError::Ledger(status) => client::explain(status),
                error => error.to_string(),
            };
            print::remark(&format!("the ledger is away, and is asked again: {why}"));
        }
        Happened::Progress(progress) => shown.update(progress.done, progress.total),
    });
    let ended = tokio::select! {
        ended = following => ended,
        _ = interrupted.recv() => Ok(()),
        _ = terminated.recv() => Ok(()),
    };
    drop(shown);
    ended.map_err(explained)?;
    printed?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::{range, time};

    #[test]
    fn times_are_dates_instants_or_milliseconds() {
        assert_eq!(time("1970-01-01"), Ok(0));
        assert_eq!(time("2026-11-22T03:29:35Z"), Ok(1_795_318_175_000));
        assert_eq!(time("2024-02-29"), Ok(1_709_164_800_000));
        assert_eq!(time("1700000000000"), Ok(1_700_000_000_000));
        for bad in [
            "",
            "2023-02-29",
            "2026-13-01",
            "2026-1-1",
            "2026-01-01T00:00:00",
            "2026-01-01T24:00:00Z",
            "1969-12-31",
            "+2026-01-01",
        ] {
            assert!(time(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_range_has_an_end_above_its_first() {
        assert_eq!(range("3..5"), Ok((3, 5)));
        for bad in ["3", "5..5", "5..3", "a..b", "-1..3"] {
            assert!(range(bad).is_err(), "{bad}");
        }
    }
}
