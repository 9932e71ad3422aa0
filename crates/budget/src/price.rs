//! What amounts cost: the sum of amounts times prices, as a fraction, rounded up once.
//!
//! Exact for any prices: where the common denominator grows beyond 128 bits, the sum goes on in longer numbers.

/// Sums fractions.
#[derive(Debug)]
pub(crate) struct Cost {
    whole: u128,
    /// Of which each is below one; few.
    parts: Vec<(u64, u64)>,
}

impl Cost {
    pub(crate) const ZERO: Self = Self { whole: 0, parts: Vec::new() };

    /// Adds `amount` at `micros` per `per`, which is above zero.
    pub(crate) fn add(&mut self, amount: u64, micros: u64, per: u64) {
        let (product, per_wide) = (u128::from(amount) * u128::from(micros), u128::from(per));
        self.whole = self.whole.saturating_add(product / per_wide);
        if let Ok(rest @ 1..) = u64::try_from(product % per_wide) {
            self.parts.push((rest, per));
        }
    }

    /// The sum, rounded up.
    pub(crate) fn round_up(&self) -> u128 {
        self.whole.saturating_add(match &self.parts[..] {
            [] => 0,
            [_] => 1,
            parts => u128::from(ceiling(parts)),
        })
    }
}

/// The sum of proper fractions, rounded up: at most their number.
fn ceiling(parts: &[(u64, u64)]) -> u64 {
    let mut numerator = Long(vec![0]);
    let mut denominator = Long(vec![1]);
    for &(rest, per) in parts {
        // a/b + r/p = (a·p + r·b) / (b·p)
        let mut share = denominator.clone();
        share.multiply(rest);
        numerator.multiply(per);
        numerator.add(&share);
        denominator.multiply(per);
    }
    let mut count = 0;
    while !numerator.is_zero() {
        numerator.subtract_or_clear(&denominator);
        count += 1;
    }
    count
}

/// A natural number, 32 bits a digit, the lowest first.
#[derive(Clone)]
struct Long(Vec<u32>);

const DIGIT: u32 = u32::BITS;

fn low(value: u64) -> u32 {
    u32::try_from(value & u64::from(u32::MAX)).unwrap_or(u32::MAX)
}

impl Long {
    fn is_zero(&self) -> bool {
        self.0.iter().all(|&digit| digit == 0)
    }

    fn multiply(&mut self, factor: u64) {
        let (low_half, high_half) = (factor & u64::from(u32::MAX), factor >> DIGIT);
        let mut high = Self(self.0.clone());
        high.multiply_digit(high_half);
        high.0.insert(0, 0);
        self.multiply_digit(low_half);
        self.add(&high);
    }

    fn multiply_digit(&mut self, factor: u64) {
        let mut carry = 0;
        for digit in &mut self.0 {
            let value = u64::from(*digit) * factor + carry;
            *digit = low(value);
            carry = value >> DIGIT;
        }
        self.0.push(low(carry));
    }

    fn add(&mut self, other: &Self) {
        self.0.resize(self.0.len().max(other.0.len()) + 1, 0);
        let mut carry = 0;
        for (at, digit) in self.0.iter_mut().enumerate() {
            let value = u64::from(*digit) + u64::from(other.0.get(at).copied().unwrap_or(0)) + carry;
            *digit = low(value);
            carry = value >> DIGIT;
        }
    }

    /// The difference, or zero where it would be below.
    fn subtract_or_clear(&mut self, other: &Self) {
        self.0.resize(self.0.len().max(other.0.len()), 0);
        let mut borrow = 0;
        for (at, digit) in self.0.iter_mut().enumerate() {
            let less = u64::from(other.0.get(at).copied().unwrap_or(0)) + borrow;
            let value = u64::from(*digit) + (1 << DIGIT) - less;
            *digit = low(value);
            borrow = 1 - (value >> DIGIT);
        }
        if borrow > 0 {
            self.0.fill(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(rows: &[(u64, u64, u64)], want: u128) {
        let mut cost = Cost::ZERO;
        for &(amount, micros, per) in rows {
            cost.add(amount, micros, per);
        }
        assert_eq!(cost.round_up(), want, "{rows:?}");
    }

    #[test]
    fn fractions_are_summed_before_they_are_rounded_up() {
        check(&[], 0);
        check(&[(10, 0, 3)], 0);
        check(&[(1_500, 2_000_000, 1_000_000)], 3_000);
        check(&[(1, 1, 1_000_000)], 1);
        check(&[(1, 1, 2), (1, 1, 2)], 1);
        check(&[(1, 1, 3), (1, 1, 3), (1, 1, 3)], 1);
        check(&[(1, 1, 2), (1, 1, 3), (1, 1, 6)], 1);
        check(&[(1, 1, 2), (1, 1, 3), (1, 1, 5)], 2);
    }

    #[test]
    fn the_sum_is_exact_beyond_128_bits() {
        let per = (1 << 48) - 59;
        let others = [per - 6, per - 30, per - 34];
        // What each row lacks to one is added after it: three exactly, and with a little more it is rounded up to four.
        let mut rows: Vec<_> = others.iter().map(|&per| (per - 1, 1, per)).collect();
        rows.extend(others.iter().map(|&per| (1, 1, per)));
        check(&rows, 3);
        rows.push((1, 1, per));
        check(&rows, 4);
        check(&[(crate::MAX_AMOUNT, crate::MAX_AMOUNT, 1)], 1 << 96);
    }
}
