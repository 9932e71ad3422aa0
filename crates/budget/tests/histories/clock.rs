//! Windows by looking at a zone's clock at many instants, instead of reckoning with dates.
//!
//! Left out: times before 2000. A date that comes again within three hours, because clocks were set back over midnight, belongs to
//! the later one.

use exchequer_budget::{Window, Zone};
use jiff::{
    Timestamp,
    tz::{TimeZone, TimeZoneDatabase},
};

const MINUTE: u64 = 60_000;
const DAY: u64 = 1_440 * MINUTE;

fn zone(name: &Zone) -> TimeZone {
    thread_local!(static ZONES: TimeZoneDatabase = TimeZoneDatabase::bundled());
    ZONES.with(|zones| zones.get(name.as_str())).unwrap()
}

fn on_clock(zone: &TimeZone, at_ms: u64) -> jiff::civil::DateTime {
    zone.to_datetime(Timestamp::from_millisecond(i64::try_from(at_ms).unwrap()).unwrap())
}

/// When clocks change next after `since_ms`; then itself, where they do not.
pub(crate) fn next_change(name: Option<&Zone>, since_ms: u64) -> u64 {
    let since = Timestamp::from_millisecond(i64::try_from(since_ms).unwrap()).unwrap();
    let change = name.and_then(|name| Some(zone(name).following(since).next()?.timestamp().as_millisecond()));
    change.map_or(since_ms, |ms| u64::try_from(ms).unwrap())
}

/// Begin and end of the window that `now_ms` is in.
pub(crate) fn window(window: Window, name: Option<&Zone>, now_ms: u64) -> (u64, u64) {
    if window == Window::AllTime {
        return (0, 0);
    }
    let zone = zone(name.unwrap());
    if window == Window::Hour {
        return hour(&zone, now_ms);
    }
    let days = |at_ms: u64| {
        let date = on_clock(&zone, at_ms).date();
        let months = i32::from(date.year()) * 12 + i32::from(date.month());
        let since_monday = i32::from(date.weekday().to_monday_zero_offset());
        let epoch = jiff::civil::date(1970, 1, 1);
        let number = (date - epoch).get_days();
        match window {
            Window::Day => number,
            Window::Week => number - since_monday,
            _ => months,
        }
    };
    let latest = |at_ms: u64| (0..=12).map(|n| days(at_ms - n * 15 * MINUTE)).max().unwrap();
    let present = latest(now_ms);
    let start = first(now_ms - 33 * DAY, now_ms, |at_ms| latest(at_ms) >= present);
    let end = first(now_ms, now_ms + 33 * DAY, |at_ms| latest(at_ms) > present);
    (start, end)
}

/// The first instant at which what stays true becomes true.
fn first(mut not_before: u64, mut true_at: u64, is: impl Fn(u64) -> bool) -> u64 {
    while not_before < true_at {
        let middle = u64::midpoint(not_before, true_at);
        if is(middle) { true_at = middle } else { not_before = middle + 1 }
    }
    true_at
}

/// While the clock shows the same hour and is not set.
fn hour(zone: &TimeZone, now_ms: u64) -> (u64, u64) {
    let shown = |at_ms: u64| {
        let clock = on_clock(zone, at_ms);
        let instant = Timestamp::from_millisecond(i64::try_from(at_ms).unwrap()).unwrap();
        (clock.date(), clock.hour(), zone.to_offset(instant))
    };
    let mut start = now_ms - now_ms % MINUTE;
    let mut end = start + MINUTE;
    while shown(start - MINUTE) == shown(now_ms) {
        start -= MINUTE;
    }
    while shown(end) == shown(now_ms) {
        end += MINUTE;
    }
    (start, end)
}
