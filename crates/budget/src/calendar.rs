//! Windows on the calendar of a zone, from the bundled tz database.
//!
//! The windows of a zone follow each other without gap or overlap. A day, week or month lasts from the first instant of its date to
//! the first instant of the next one's, so clocks that change make it shorter or longer, and a date that a zone skipped has none. An
//! hour ends where the clock's hour ends, or where clocks change within it. Only a writer asks: what it found is in the events, and
//! a replay needs no database.

use std::sync::LazyLock;

use jiff::{
    Timestamp, ToSpan,
    civil::{Date, Weekday},
    tz::{TimeZone, TimeZoneDatabase},
};

use crate::{id::Zone, policy::Window};

const HOUR_MS: i64 = 3_600_000;

static ZONES: LazyLock<TimeZoneDatabase> = LazyLock::new(TimeZoneDatabase::bundled);

impl Zone {
    /// Whether the bundled database has it.
    pub fn known(&self) -> bool {
        ZONES.get(self.as_str()).is_ok()
    }

    /// Universal time.
    pub fn utc() -> Self {
        Self::parse("UTC").expect("a zone's name")
    }
}

/// Beginning and end, in milliseconds since the Unix epoch, of the window of `now_ms`. Zeros over all time. A zone that is not known
/// is taken for UTC: it was known to the writer that set the budget, and time has to go on.
pub(crate) fn window(window: Window, zone: Option<&Zone>, now_ms: u64) -> (u64, u64) {
    if window == Window::AllTime {
        return (0, 0);
    }
    let zone = zone.and_then(|zone| ZONES.get(zone.as_str()).ok()).unwrap_or(TimeZone::UTC);
    let now = i64::try_from(now_ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    let found = now.and_then(|now| match window {
        Window::Hour => hour(&zone, now),
        _ => dates(window, &zone, now),
    });
    // Beyond the calendar's end (the year 9999) a window does not end.
    found.unwrap_or((now_ms, u64::MAX))
}

fn hour(zone: &TimeZone, now: Timestamp) -> Option<(u64, u64)> {
    let offset = i64::from(zone.to_offset(now).seconds()) * 1_000;
    let now_ms = now.as_millisecond();
    let start = (now_ms + offset).div_euclid(HOUR_MS) * HOUR_MS - offset;
    let after = now.checked_add(1.millisecond()).ok()?;
    let last = zone.preceding(after).next().map_or(start, |change| change.timestamp().as_millisecond());
    let next = zone.following(now).next();
    let next = next.map_or(start + HOUR_MS, |change| change.timestamp().as_millisecond());
    pair(start.max(last), (start + HOUR_MS).min(next))
}

fn dates(window: Window, zone: &TimeZone, now: Timestamp) -> Option<(u64, u64)> {
    let mut date = first_date(window, zone.to_datetime(now).date())?;
    let now_ms = now.as_millisecond();
    // Where clocks were set back over midnight, a date comes again after the next one began.
    while now_ms >= first_instant(zone, next_date(window, date)?)? {
        date = next_date(window, date)?;
    }
    pair(first_instant(zone, date)?, first_instant(zone, next_date(window, date)?)?)
}

fn first_date(window: Window, date: Date) -> Option<Date> {
    match window {
        Window::Week => {
            let since = date.weekday().since(Weekday::Monday);
            date.checked_sub(i64::from(since).days()).ok()
        }
        Window::Month => Some(date.first_of_month()),
        _ => Some(date),
    }
}

fn next_date(window: Window, date: Date) -> Option<Date> {
    let span = match window {
        Window::Week => 1.week(),
        Window::Month => 1.month(),
        _ => 1.day(),
    };
    date.checked_add(span).ok()
}

/// Midnight, the first where there are two, and what follows the gap where there is none.
fn first_instant(zone: &TimeZone, date: Date) -> Option<i64> {
    zone.to_timestamp(date.at(0, 0, 0, 0)).ok().map(Timestamp::as_millisecond)
}

fn pair(start: i64, end: i64) -> Option<(u64, u64)> {
    // Nothing is before the epoch: a window that began there begins with it.
    let (start, end) = (u64::try_from(start.max(0)).ok()?, u64::try_from(end).ok()?);
    (start < end).then_some((start, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each window's length in minutes, from the one of `from` on, told in the zone's own time; each begins where the last ended.
    fn check(zone: &str, kind: Window, from: &str, minutes: &[u64]) {
        let zone = Zone::parse(zone).unwrap();
        let from: Timestamp = from.parse().unwrap();
        let mut now_ms = u64::try_from(from.as_millisecond()).unwrap();
        for (at, &want) in minutes.iter().enumerate() {
            let (start, end) = window(kind, Some(&zone), now_ms);
            assert!(at == 0 || start == now_ms, "{zone} {kind:?}: window {at} follows the last");
            assert_eq!((end - start) / 60_000, want, "{zone} {kind:?} {at}");
            for inside in [start, start + (end - start) / 2, end - 1] {
                assert_eq!(window(kind, Some(&zone), inside), (start, end));
            }
            now_ms = end;
        }
    }

    const DAY: u64 = 24 * 60;

    #[test]
    fn days_are_as_long_as_the_clock_makes_them() {
        check("UTC", Window::Day, "2026-03-29T12:00:00Z", &[DAY, DAY]);
        check("America/New_York", Window::Day, "2026-03-07T12:00:00-05:00", &[DAY, 23 * 60, DAY]);
        check("America/New_York", Window::Day, "2026-10-31T12:00:00-04:00", &[DAY, 25 * 60, DAY]);
        check("Europe/Vienna", Window::Day, "2026-03-28T00:00:00+01:00", &[DAY, 23 * 60, DAY]);
        check("Europe/Vienna", Window::Day, "2026-10-25T02:30:00+01:00", &[25 * 60, DAY]);
        check("Asia/Kolkata", Window::Day, "2026-03-29T23:59:59+05:30", &[DAY, DAY]);
        check("Australia/Lord_Howe", Window::Day, "2026-04-04T23:00:00+11:00", &[DAY, DAY + 30, DAY]);
        check("Australia/Lord_Howe", Window::Day, "2026-10-04T12:00:00+11:00", &[DAY - 30, DAY]);
    }

    #[test]
    fn a_date_that_a_zone_skipped_has_no_window() {
        // Samoa went from 29 to 31 December 2011; the month lacks the day.
        check("Pacific/Apia", Window::Day, "2011-12-29T12:00:00-10:00", &[DAY, DAY, DAY]);
        check("Pacific/Apia", Window::Month, "2011-12-02T12:00:00-10:00", &[30 * DAY, 31 * DAY]);
        check("Pacific/Apia", Window::Week, "2011-12-27T12:00:00-10:00", &[6 * DAY, 7 * DAY]);
    }

    #[test]
    fn a_midnight_that_comes_twice_begins_a_day_once() {
        // At 00:01 of 1 November 2009 clocks in St. John's went back to 23:01 of the day before.
        check("America/St_Johns", Window::Day, "2009-10-31T12:00:00-02:30", &[DAY, 25 * 60, DAY]);
    }

    #[test]
    fn hours_end_with_the_clock_s_hour_or_where_clocks_change() {
        check("America/New_York", Window::Hour, "2026-11-01T00:30:00-04:00", &[60; 4]);
        check("America/New_York", Window::Hour, "2026-03-08T01:30:00-05:00", &[60; 3]);
        check("Asia/Kolkata", Window::Hour, "2026-01-01T00:00:00+05:30", &[60; 2]);
        check("Australia/Lord_Howe", Window::Hour, "2026-04-05T01:15:00+11:00", &[60, 30, 60]);
        check("Australia/Lord_Howe", Window::Hour, "2026-10-04T01:15:00+10:30", &[60, 30, 60]);
    }

    #[test]
    fn months_are_as_long_as_the_calendar_makes_them() {
        check("UTC", Window::Month, "2024-01-31T23:59:59Z", &[31 * DAY, 29 * DAY, 31 * DAY]);
        check("UTC", Window::Month, "2026-02-28T23:59:59Z", &[28 * DAY, 31 * DAY]);
        check("UTC", Window::Month, "2100-02-01T00:00:00Z", &[28 * DAY]);
        check("Europe/Vienna", Window::Month, "2026-03-15T00:00:00Z", &[31 * DAY - 60, 30 * DAY]);
    }

    #[test]
    fn weeks_begin_on_monday() {
        check("UTC", Window::Week, "2024-02-26T00:00:00Z", &[7 * DAY; 2]);
        check("Europe/Vienna", Window::Week, "2026-03-29T23:00:00+02:00", &[7 * DAY - 60, 7 * DAY]);
    }

    #[test]
    fn zones_are_those_of_the_database() {
        for (name, known) in
            [("UTC", true), ("Europe/Vienna", true), ("Mars/Olympus", false), ("../etc", false)]
        {
            assert_eq!(Zone::parse(name).is_ok_and(|zone| zone.known()), known, "{name}");
        }
        assert_eq!(window(Window::Day, Some(&Zone::utc()), u64::MAX), (u64::MAX, u64::MAX));
        assert_eq!(window(Window::AllTime, None, 5), (0, 0));
    }
}
