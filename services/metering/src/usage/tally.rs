//! What is added up of one meter, and the bytes of numbers in rows.
//!
//! Pure. Invariant: [`Tally::add`] is associative and commutative, so that the order in which records come does not show.

/// Sum, count and largest of some records of one meter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    /// Corrections included.
    pub(super) sum: i128,
    /// Records, corrections not counted.
    pub(super) count: u64,
    /// The largest record, corrections left out.
    pub(super) max: u64,
}

impl Tally {
    /// One record's amount.
    pub(super) fn used(amount: u64) -> Self {
        Self { sum: amount.into(), count: 1, max: amount }
    }

    /// One correction.
    pub(super) fn corrected(amount: u64, added: bool) -> Self {
        let amount = i128::from(amount);
        Self { sum: if added { amount } else { -amount }, ..Self::default() }
    }

    pub(super) fn add(&mut self, other: &Self) {
        // 2^64 records of 2^63 would fit.
        self.sum = self.sum.saturating_add(other.sum);
        self.count = self.count.saturating_add(other.count);
        self.max = self.max.max(other.max);
    }

    /// Whether nothing is left to tell of.
    pub(super) fn is_empty(&self) -> bool {
        self.sum == 0 && self.count == 0
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        put_number(out, zigzag(self.sum));
        put_number(out, self.count.into());
        put_number(out, self.max.into());
    }

    pub(super) fn decode(bytes: &mut Bytes<'_>) -> Option<Self> {
        Some(Self { sum: unzigzag(bytes.number()?), count: bytes.u64()?, max: bytes.u64()? })
    }
}

/// Tallies by a name's own number of the meter.
pub(super) type Tallies = Vec<(u16, Tally)>;

/// Adds one meter's tally to those of others.
pub(super) fn add_to(tallies: &mut Tallies, meter: u16, tally: &Tally) {
    match tallies.iter_mut().find(|(known, _)| *known == meter) {
        Some((_, sum)) => sum.add(tally),
        None => tallies.push((meter, *tally)),
    }
}

pub(super) fn put_tallies(out: &mut Vec<u8>, tallies: &Tallies) {
    put_number(out, tallies.len() as u128);
    for (meter, tally) in tallies {
        put_number(out, (*meter).into());
        tally.encode(out);
    }
}

fn zigzag(number: i128) -> u128 {
    ((number << 1) ^ (number >> 127)).cast_unsigned()
}

fn unzigzag(number: u128) -> i128 {
    (number >> 1).cast_signed() ^ -((number & 1).cast_signed())
}

/// Appends a number, seven bits a byte, the lowest first.
pub(super) fn put_number(out: &mut Vec<u8>, mut number: u128) {
    loop {
        let low = (number & 0x7f) as u8;
        number >>= 7;
        if number == 0 {
            return out.push(low);
        }
        out.push(low | 0x80);
    }
}

/// Appends a text with its length.
pub(super) fn put_text(out: &mut Vec<u8>, text: &str) {
    put_number(out, text.len() as u128);
    out.extend_from_slice(text.as_bytes());
}

/// Bytes of a row that are still to be read; `None` wherever they are not what was written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bytes<'a>(pub(super) &'a [u8]);

impl<'a> Bytes<'a> {
    pub(super) fn number(&mut self) -> Option<u128> {
        let mut number = 0;
        for shift in (0..128).step_by(7) {
            let (&byte, rest) = self.0.split_first()?;
            self.0 = rest;
            number |= u128::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(number);
            }
        }
        None
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        u64::try_from(self.number()?).ok()
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        u32::try_from(self.number()?).ok()
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        u16::try_from(self.number()?).ok()
    }

    pub(super) fn len(&mut self) -> Option<usize> {
        usize::try_from(self.number()?).ok()
    }

    pub(super) fn text(&mut self) -> Option<&'a str> {
        let len = self.len()?;
        let (text, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        std::str::from_utf8(text).ok()
    }

    pub(super) fn tallies(&mut self) -> Option<Tallies> {
        let len = self.len()?;
        (0..len).map(|_| Some((self.u16()?, Tally::decode(self)?))).collect()
    }

    /// The value, if nothing follows it.
    pub(super) fn end<T>(self, value: T) -> Option<T> {
        self.0.is_empty().then_some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tallies_come_back_from_their_bytes_and_cut_ones_do_not() {
        let largest = Tally { sum: i128::MAX, count: u64::MAX, max: u64::MAX };
        let smallest = Tally { sum: i128::MIN, ..Tally::default() };
        let tallies =
            vec![(0, Tally::used(5)), (1, Tally::corrected(7, false)), (300, largest), (9, smallest)];
        let mut bytes = Vec::new();
        put_tallies(&mut bytes, &tallies);
        let mut whole = Bytes(&bytes);
        let read = whole.tallies();
        assert_eq!(read.and_then(|read| whole.end(read)), Some(tallies));
        for cut in 0..bytes.len() {
            assert_eq!(Bytes(&bytes[..cut]).tallies(), None, "cut at {cut}");
        }
    }

    #[test]
    fn corrections_change_the_sum_and_nothing_else() {
        let mut tally = Tally::used(10);
        tally.add(&Tally::corrected(4, false));
        tally.add(&Tally::corrected(1, true));
        tally.add(&Tally::used(3));
        assert_eq!(tally, Tally { sum: 10, count: 2, max: 10 });
    }
}
