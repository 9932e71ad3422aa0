//! Minutes since the Unix epoch, and the minutes, hours, days and months of UTC that they lie in.
//!
//! Left out: other time zones, which budgets have and usage has not. Pure. Invariant: the buckets of one granularity divide time without
//! gap or overlap, and each bucket is a union of buckets of the next finer one.

/// The first minute after the last one that is counted: the end of year 9999.
pub(super) const END: u32 = 4_223_371_680;
pub(super) const MILLIS_PER_MINUTE: u64 = 60_000;
const MINUTES_PER_HOUR: u32 = 60;
const MINUTES_PER_DAY: u32 = 1440;

/// The minute of a time; what lies beyond year 9999 counts in its last minute.
pub(super) fn minute_of(unix_ms: u64) -> u32 {
    u32::try_from(unix_ms / MILLIS_PER_MINUTE).map_or(END - 1, |minute| minute.min(END - 1))
}

/// Beginning of a minute.
pub(super) fn unix_ms(minute: u32) -> u64 {
    u64::from(minute) * MILLIS_PER_MINUTE
}

/// Length of a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub(super) enum Granularity {
    Minute = 0,
    Hour = 1,
    Day = 2,
    Month = 3,
}

impl Granularity {
    /// From the finest on.
    pub(super) const ALL: [Self; 4] = [Self::Minute, Self::Hour, Self::Day, Self::Month];

    pub(super) fn finer(self) -> Option<Self> {
        match self {
            Self::Minute => None,
            Self::Hour => Some(Self::Minute),
            Self::Day => Some(Self::Hour),
            Self::Month => Some(Self::Day),
        }
    }

    /// Beginning of the bucket that the minute lies in.
    pub(super) fn floor(self, minute: u32) -> u32 {
        match self {
            Self::Minute => minute,
            Self::Hour => minute - minute % MINUTES_PER_HOUR,
            Self::Day => minute - minute % MINUTES_PER_DAY,
            Self::Month => {
                let (year, month) = month_of(minute / MINUTES_PER_DAY);
                days_before(year, month) * MINUTES_PER_DAY
            }
        }
    }

    /// End of the bucket that the minute lies in.
    pub(super) fn next(self, minute: u32) -> u32 {
        match self {
            Self::Minute => minute + 1,
            Self::Hour => self.floor(minute) + MINUTES_PER_HOUR,
            Self::Day => self.floor(minute) + MINUTES_PER_DAY,
            Self::Month => {
                let (year, month) = month_of(minute / MINUTES_PER_DAY);
                let (year, month) = if month == 12 { (year + 1, 1) } else { (year, month + 1) };
                days_before(year, month) * MINUTES_PER_DAY
            }
        }
    }

    /// The first beginning of a bucket at or after the minute.
    pub(super) fn ceil(self, minute: u32) -> u32 {
        let floor = self.floor(minute);
        if floor == minute { minute } else { self.next(minute) }
    }
}

/// Buckets of one granularity, side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) granularity: Granularity,
    /// Beginning of the first.
    pub(super) from: u32,
    /// End of the last.
    pub(super) to: u32,
}

/// The range in the largest buckets that fit: at most seven pieces.
pub(super) fn cover(from: u32, to: u32) -> Vec<Piece> {
    let mut pieces = Vec::with_capacity(7);
    cover_with(Granularity::Month, from, to, &mut pieces);
    pieces
}

fn cover_with(granularity: Granularity, from: u32, to: u32, pieces: &mut Vec<Piece>) {
    if from >= to {
        return;
    }
    let (first, last) = (granularity.ceil(from), granularity.floor(to));
    match granularity.finer() {
        Some(finer) if first >= last => cover_with(finer, from, to, pieces),
        finer => {
            if let Some(finer) = finer {
                cover_with(finer, from, first, pieces);
            }
            pieces.push(Piece { granularity, from: first, to: last });
            if let Some(finer) = finer {
                cover_with(finer, last, to, pieces);
            }
        }
    }
}

/// Days of the 400 years after which the calendar repeats.
const DAYS_PER_ERA: u32 = 146_097;
/// From 0000-03-01, where eras begin, to 1970-01-01.
const EPOCH_DAYS: u32 = 719_468;

/// Year and month (1 to 12) of a day since 1970-01-01, by the Gregorian calendar. Years are counted from March within.
fn month_of(days: u32) -> (u32, u32) {
    let days = days + EPOCH_DAYS;
    let (era, day) = (days / DAYS_PER_ERA, days % DAYS_PER_ERA);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day_of_year + 2) / 153;
    let year = era * 400 + year;
    if month < 10 { (year, month + 3) } else { (year + 1, month - 9) }
}

/// Days from 1970-01-01 to the first of a month.
fn days_before(year: u32, month: u32) -> u32 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let (era, year) = (year / 400, year % 400);
    era * DAYS_PER_ERA + 365 * year + year / 4 - year / 100 + (153 * month + 2) / 5 - EPOCH_DAYS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_day_until_the_year_10000_lies_in_the_month_that_counting_gives() {
        let is_leap =
            |year: u32| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
        let (mut day, mut year) = (0, 1970);
        while year < 10_000 {
            let february = if is_leap(year) { 29 } else { 28 };
            let lengths = [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
            for (month, length) in (1..).zip(lengths) {
                assert_eq!(days_before(year, month), day, "{year}-{month}");
                for day in [day, day + length - 1] {
                    assert_eq!(month_of(day), (year, month));
                }
                let (start, end) = (day * MINUTES_PER_DAY, (day + length) * MINUTES_PER_DAY);
                assert_eq!((Granularity::Month.floor(end - 1), Granularity::Month.next(start)), (start, end));
                day += length;
            }
            year += 1;
        }
        assert_eq!(day * MINUTES_PER_DAY, END);
    }

    #[test]
    fn what_lies_beyond_the_calendar_counts_in_its_last_minute() {
        assert_eq!((minute_of(59_999), minute_of(60_000)), (0, 1));
        assert_eq!((minute_of(unix_ms(END) - 1), minute_of(unix_ms(END))), (END - 1, END - 1));
        assert_eq!(minute_of(u64::MAX), END - 1);
        assert_eq!(Granularity::Month.next(END - 1), END);
    }

    #[test]
    fn a_range_is_covered_by_the_largest_buckets_that_fit() {
        use Granularity::{Day, Hour, Minute, Month};
        let check = |from: u32, to: u32, want: &[(Granularity, u32, u32)]| {
            let got: Vec<_> = cover(from, to).into_iter().map(|p| (p.granularity, p.from, p.to)).collect();
            assert_eq!(got, want);
        };
        check(5, 5, &[]);
        check(5, 6, &[(Minute, 5, 6)]);
        check(59, 121, &[(Minute, 59, 60), (Hour, 60, 120), (Minute, 120, 121)]);
        check(60, 1440, &[(Hour, 60, 1440)]);
        let (february, march) = (31 * 1440, 59 * 1440);
        check(
            february - 1441,
            march + 61,
            &[
                (Minute, february - 1441, february - 1440),
                (Day, february - 1440, february),
                (Month, february, march),
                (Hour, march, march + 60),
                (Minute, march + 60, march + 61),
            ],
        );
        check(0, END, &[(Month, 0, END)]);
    }
}
