//! The arithmetic of INCRBYFLOAT: the 80-bit extended floats that a server on x86-64 uses, in integers.
//!
//! The server reads both numbers as `long double`, adds them and prints the sum with 17 digits after the point, less the
//! trailing zeros. With 64-bit floats the last digits would differ (`10.5 + 0.1` would end in noise), so the 64 bits of
//! precision are reproduced: reading, adding and printing round to nearest, ties to even, each once.
//!
//! Invariant: the mantissa of a [`Number::Finite`] has its top bit set, or is zero. The sign of zero is dropped, which
//! no reply shows. Numbers below the smallest normal one keep full precision here; 17 digits do not show that either.
//! Reading costs at most the square of the text's length, which is bounded by [`TEXT_LEN_MAX`].

use std::cmp::Ordering;

/// Longest text that is read as a number, in bytes (the server's buffer less its terminator).
const TEXT_LEN_MAX: usize = 5 * 1024 - 1;
/// Digits after the point that a reply can have.
const FRACTION_DIGITS: usize = 17;
/// Bits of the mantissa.
const MANTISSA_BITS: i64 = 64;
/// Values from 2 to this power on are out of range.
const POWER_MAX: i64 = 16_384;
/// Values below 2 to this power are nearer to zero than to the smallest number that there is.
const POWER_MIN: i64 = -16_446;
/// Written exponents are cut off here: far out of range already, and sums of them cannot overflow.
const WRITTEN_EXPONENT_MAX: i64 = 1_000_000;
/// Powers of ten beyond which a number is out of range, whatever its bits; they bound the work of reading.
const TENS_MAX: i64 = 4_940;
const TENS_MIN: i64 = -4_960;

/// Decimal digits that fit in 32 bits.
const DIGITS_AT_ONCE: usize = 9;

/// A number as INCRBYFLOAT sees it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Number {
    /// `mantissa * 2^exponent`.
    Finite { negative: bool, mantissa: u64, exponent: i64 },
    /// Written as `inf` or `infinity`, or the outcome of an addition. `inf - inf` is counted here too.
    Infinite,
}

// === impl Number ===

impl Number {
    pub(super) const ZERO: Self = Self::Finite { negative: false, mantissa: 0, exponent: 0 };

    pub(super) fn from_integer(value: i64) -> Self {
        Self::normalized(value < 0, value.unsigned_abs(), 0)
    }

    /// Reads what C's `strtold` would read, if it is the whole text; `None` for anything else and for numbers out of
    /// range, too small ones included.
    pub(super) fn parse(text: &[u8]) -> Option<Self> {
        if text.len() > TEXT_LEN_MAX {
            return None;
        }
        let (negative, unsigned) = match text {
            [b'-', rest @ ..] => (true, rest),
            [b'+', rest @ ..] => (false, rest),
            _ => (false, text),
        };
        if unsigned.eq_ignore_ascii_case(b"inf") || unsigned.eq_ignore_ascii_case(b"infinity") {
            return Some(Self::Infinite);
        }
        match unsigned {
            [b'0', b'x' | b'X', rest @ ..] => parse_hexadecimal(negative, rest),
            _ => parse_decimal(negative, unsigned),
        }
    }

    /// The sum, rounded to 64 bits.
    pub(super) fn add(self, other: Self) -> Self {
        let (Self::Finite { .. }, Self::Finite { .. }) = (self, other) else { return Self::Infinite };
        let (large, small) = if self.magnitude() >= other.magnitude() { (self, other) } else { (other, self) };
        match (large, small) {
            (_, Self::Finite { mantissa: 0, .. }) => large,
            (
                Self::Finite { negative, mantissa, exponent },
                Self::Finite { negative: small_negative, mantissa: small_mantissa, exponent: small_exponent },
            ) => {
                // 63 bits below the mantissa keep all that rounding needs; one above takes the carry.
                let wide = u128::from(mantissa) << 63;
                let addend = shift_right_sticky(u128::from(small_mantissa) << 63, exponent - small_exponent);
                let sum = if negative == small_negative { wide + addend } else { wide - addend };
                round(negative, sum, exponent - 63).unwrap_or(Self::Infinite)
            }
            _ => Self::Infinite,
        }
    }

    /// Decimal digits without exponent: 17 after the point at most, trailing zeros dropped; `None` for infinity.
    pub(super) fn to_text(self) -> Option<Vec<u8>> {
        let Self::Finite { negative, mantissa, exponent } = self else { return None };
        let mut text = if exponent >= 0 {
            let mut whole = Natural::from(u128::from(mantissa));
            whole.shift_left(exponent as usize);
            whole.to_decimal()
        } else {
            // The mantissa times 10^17 has 121 bits at most.
            let scaled = round_to_even(u128::from(mantissa) * 10u128.pow(FRACTION_DIGITS as u32), -exponent);
            fraction_text(scaled)
        };
        if negative && text != b"0" {
            text.insert(0, b'-');
        }
        Some(text)
    }

    fn normalized(negative: bool, mantissa: u64, exponent: i64) -> Self {
        if mantissa == 0 {
            return Self::ZERO;
        }
        let shift = mantissa.leading_zeros();
        Self::Finite { negative, mantissa: mantissa << shift, exponent: exponent - i64::from(shift) }
    }

    /// Orders finite numbers by their absolute value.
    fn magnitude(self) -> (i64, u64) {
        match self {
            Self::Finite { mantissa: 0, .. } => (i64::MIN, 0),
            Self::Finite { mantissa, exponent, .. } => (exponent, mantissa),
            Self::Infinite => (i64::MAX, u64::MAX),
        }
    }
}

fn parse_decimal(negative: bool, text: &[u8]) -> Option<Number> {
    let written = Written::split(text, b'e', u8::is_ascii_digit)?;
    let digits = written.digits;
    if digits.is_empty() {
        return Some(Number::ZERO);
    }
    let scale = written.exponent - written.fraction_digits;
    if !(TENS_MIN..=TENS_MAX).contains(&(scale + digits.len() as i64)) {
        return None;
    }
    let (mut over, mut under) = (Natural::from(0), Natural::from(1));
    for group in digits.chunks(DIGITS_AT_ONCE) {
        let value = group.iter().fold(0, |value, digit| value * 10 + u32::from(digit - b'0'));
        over.multiply_add(10u32.pow(group.len() as u32), value);
    }
    let tens = if scale >= 0 { &mut over } else { &mut under };
    let mut left = scale.unsigned_abs();
    while left > 0 {
        let step = left.min(DIGITS_AT_ONCE as u64);
        tens.multiply_add(10u32.pow(step as u32), 0);
        left -= step;
    }
    divide(negative, over, under, 0)
}

fn parse_hexadecimal(negative: bool, text: &[u8]) -> Option<Number> {
    let written = Written::split(text, b'p', u8::is_ascii_hexdigit)?;
    if written.digits.is_empty() {
        return Some(Number::ZERO);
    }
    let mut over = Natural::from(0);
    for digit in &written.digits {
        over.multiply_add(16, char::from(*digit).to_digit(16).unwrap_or(0));
    }
    divide(negative, over, Natural::from(1), written.exponent - 4 * written.fraction_digits)
}

/// The parts of a written number.
struct Written {
    /// Significant digits, without leading zeros and without the point.
    digits: Vec<u8>,
    fraction_digits: i64,
    exponent: i64,
}

// === impl Written ===

impl Written {
    /// Splits `digits[.digits][mark[sign]digits]`; `None` unless the whole text has this form, with one digit at least.
    fn split(text: &[u8], mark: u8, is_digit: fn(&u8) -> bool) -> Option<Self> {
        let end = text.iter().position(|b| !(is_digit(b) || *b == b'.')).unwrap_or(text.len());
        let (body, rest) = text.split_at(end);
        let point = body.iter().position(|&b| b == b'.');
        let fraction = point.map_or(&body[body.len()..], |at| &body[at + 1..]);
        let whole = &body[..point.unwrap_or(body.len())];
        if fraction.contains(&b'.') || (whole.is_empty() && fraction.is_empty()) {
            return None;
        }
        let exponent = match rest {
            [] => 0,
            [first, power @ ..] if first.eq_ignore_ascii_case(&mark) => written_exponent(power)?,
            _ => return None,
        };
        let digits = [whole, fraction].concat().into_iter().skip_while(|&b| b == b'0').collect();
        Some(Self { digits, fraction_digits: fraction.len() as i64, exponent })
    }
}

fn written_exponent(text: &[u8]) -> Option<i64> {
    let (sign, digits) = match text {
        [b'-', rest @ ..] => (-1, rest),
        [b'+', rest @ ..] => (1, rest),
        _ => (1, text),
    };
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let value = digits.iter().fold(0, |value, digit| (value * 10 + i64::from(digit - b'0')).min(WRITTEN_EXPONENT_MAX));
    Some(sign * value)
}

/// `over / under * 2^exponent` for natural numbers above zero, rounded to 64 bits.
fn divide(negative: bool, mut over: Natural, mut under: Natural, exponent: i64) -> Option<Number> {
    // Scaled so that the quotient has 66 or 67 bits: two below the mantissa at least, the lowest of which tells whether
    // anything is left over.
    const QUOTIENT_BITS_MAX: i64 = MANTISSA_BITS + 3;
    let scale = QUOTIENT_BITS_MAX - 1 - (over.bits() - under.bits());
    if scale >= 0 {
        over.shift_left(scale as usize)
    } else {
        under.shift_left(scale.unsigned_abs() as usize)
    }
    under.shift_left(QUOTIENT_BITS_MAX as usize);
    let mut quotient = 0u128;
    for _ in 0..QUOTIENT_BITS_MAX {
        under.halve();
        quotient <<= 1;
        if over.compare(&under) != Ordering::Less {
            over.subtract(&under);
            quotient |= 1;
        }
    }
    round(negative, quotient | u128::from(over.bits() > 0), exponent - scale)
}

/// Rounds `value * 2^exponent` to 64 bits; `None` if that is out of range.
fn round(negative: bool, value: u128, exponent: i64) -> Option<Number> {
    if value == 0 {
        return Some(Number::ZERO);
    }
    let excess = (i64::from(u128::BITS - value.leading_zeros()) - MANTISSA_BITS).max(0);
    let rounded = if excess == 0 { value } else { round_to_even(value, excess) };
    let power = exponent + excess + i64::from(u128::BITS - rounded.leading_zeros());
    if !(POWER_MIN + 1..=POWER_MAX).contains(&power) {
        return None;
    }
    // A carry out of the top leaves a power of two.
    Some(match u64::try_from(rounded) {
        Ok(mantissa) => Number::normalized(negative, mantissa, exponent + excess),
        Err(_) => Number::normalized(negative, 1 << 63, exponent + excess + 1),
    })
}

/// `value / 2^bits`, rounded to nearest, ties to even.
fn round_to_even(value: u128, bits: i64) -> u128 {
    if bits > i64::from(u128::BITS) {
        return 0;
    }
    let half = 1u128 << (bits - 1);
    let floor = if bits == i64::from(u128::BITS) { 0 } else { value >> bits };
    let rest = value & (half | (half - 1));
    floor + u128::from(rest > half || (rest == half && floor & 1 == 1))
}

/// `value / 2^bits`, with the lowest bit set if anything was lost.
fn shift_right_sticky(value: u128, bits: i64) -> u128 {
    if bits >= i64::from(u128::BITS) {
        return u128::from(value != 0);
    }
    let kept = value >> bits;
    kept | u128::from(kept << bits != value)
}

/// `scaled / 10^17` in decimal, trailing zeros dropped.
fn fraction_text(scaled: u128) -> Vec<u8> {
    let unit = 10u128.pow(FRACTION_DIGITS as u32);
    let text = format!("{}.{:0width$}", scaled / unit, scaled % unit, width = FRACTION_DIGITS);
    text.trim_end_matches('0').trim_end_matches('.').as_bytes().to_vec()
}

/// A natural number of any size: 32-bit limbs, lowest first, no zero at the top.
#[derive(Clone, Debug)]
struct Natural {
    limbs: Vec<u32>,
}

// === impl Natural ===

impl From<u128> for Natural {
    fn from(value: u128) -> Self {
        let mut number = Self { limbs: (0..4).map(|i| (value >> (32 * i)) as u32).collect() };
        number.trim();
        number
    }
}

impl Natural {
    fn bits(&self) -> i64 {
        self.limbs.last().map_or(0, |top| self.limbs.len() as i64 * 32 - i64::from(top.leading_zeros()))
    }

    fn multiply_add(&mut self, factor: u32, addend: u32) {
        let mut carry = u64::from(addend);
        for limb in &mut self.limbs {
            carry += u64::from(*limb) * u64::from(factor);
            *limb = carry as u32;
            carry >>= 32;
        }
        if carry > 0 {
            self.limbs.push(carry as u32);
        }
    }

    fn shift_left(&mut self, bits: usize) {
        if self.limbs.is_empty() {
            return;
        }
        self.multiply_add(1 << (bits % 32), 0);
        self.limbs.splice(0..0, std::iter::repeat_n(0, bits / 32));
    }

    fn halve(&mut self) {
        let mut carry = 0;
        for limb in self.limbs.iter_mut().rev() {
            let low = *limb & 1;
            *limb = (*limb >> 1) | (carry << 31);
            carry = low;
        }
        self.trim();
    }

    fn compare(&self, other: &Self) -> Ordering {
        let by_length = self.limbs.len().cmp(&other.limbs.len());
        by_length.then_with(|| self.limbs.iter().rev().cmp(other.limbs.iter().rev()))
    }

    /// Takes `other` away, which must not be larger.
    fn subtract(&mut self, other: &Self) {
        let mut borrow = false;
        for (i, limb) in self.limbs.iter_mut().enumerate() {
            let (once, first) = limb.overflowing_sub(other.limbs.get(i).copied().unwrap_or(0));
            let (twice, second) = once.overflowing_sub(u32::from(borrow));
            *limb = twice;
            borrow = first || second;
        }
        self.trim();
    }

    fn to_decimal(&self) -> Vec<u8> {
        const GROUP: u64 = 1_000_000_000;
        let mut rest = self.clone();
        let mut groups = Vec::new();
        while !rest.limbs.is_empty() {
            let mut remainder = 0u64;
            for limb in rest.limbs.iter_mut().rev() {
                let value = (remainder << 32) | u64::from(*limb);
                *limb = (value / GROUP) as u32;
                remainder = value % GROUP;
            }
            rest.trim();
            groups.push(remainder);
        }
        let mut text = groups.pop().unwrap_or(0).to_string();
        for group in groups.iter().rev() {
            text.push_str(&format!("{group:09}"));
        }
        text.into_bytes()
    }

    fn trim(&mut self) {
        while self.limbs.last() == Some(&0) {
            self.limbs.pop();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sum(a: &str, b: &str) -> String {
        let total = Number::parse(a.as_bytes()).unwrap().add(Number::parse(b.as_bytes()).unwrap());
        total.to_text().map_or("infinite".into(), |text| String::from_utf8(text).unwrap())
    }

    #[test]
    fn sums_look_as_the_server_prints_them() {
        assert_eq!(sum("10.50", "0.1"), "10.6");
        assert_eq!(sum("5.0e3", "2.0e2"), "5200");
        assert_eq!(sum("3.0e3", "0"), "3000");
        assert_eq!(sum("0", "1000.1"), "1000.09999999999999998");
        assert_eq!(sum("0.1", "0.2"), "0.3");
        assert_eq!(sum("1", "-1"), "0");
        assert_eq!(sum("-0.5", "0.25"), "-0.25");
        assert_eq!(sum("-1e-30", "0"), "0");
        assert_eq!(sum("0", "0x10"), "16");
        assert_eq!(sum("0", "0x.8p1"), "1");
        assert_eq!(sum("1e19", "1"), "10000000000000000001");
        assert_eq!(sum("18446744073709551615", "1"), "18446744073709551616");
        assert_eq!(sum("36893488147419103232", "1"), "36893488147419103232");
        assert_eq!(sum("1e4930", "0").len(), 4931);
        assert_eq!(sum("1e4932", "1e4932"), "infinite");
    }

    #[test]
    fn texts_that_are_no_numbers() {
        for text in ["", " 1", "1 ", "1e", "e1", ".", "0x", "0xp1", "1.2.3", "nan", "--1", "1e5000", "1e-4960", "1_0"] {
            assert_eq!(Number::parse(text.as_bytes()), None, "{text:?}");
        }
        assert_eq!(Number::parse("1".repeat(TEXT_LEN_MAX + 1).as_bytes()), None);
        assert_eq!(Number::parse(b"-InFinity"), Some(Number::Infinite));
        assert_eq!(Number::parse(b"0e999999999999999999999"), Some(Number::ZERO));
        assert!(Number::parse(b"1e-4940").is_some());
    }

    proptest! {
        #[test]
        fn integers_add_exactly(a in any::<i64>(), b in any::<i64>()) {
            let total = Number::from_integer(a).add(Number::from_integer(b)).to_text().unwrap();
            // 64 bits hold every sum but those that need 65, which are rounded.
            let exact = i128::from(a) + i128::from(b);
            if exact.unsigned_abs() <= u128::from(u64::MAX) {
                prop_assert_eq!(String::from_utf8(total).unwrap(), exact.to_string());
            }
        }

        #[test]
        fn doubles_are_read_exactly(value in any::<f64>()) {
            // Every 64-bit float is an extended float, and 17 digits after the point are what both print.
            if value.is_finite() {
                let printed = format!("{value:.17}");
                let trimmed = printed.trim_end_matches('0').trim_end_matches('.');
                let expected = if trimmed == "-0" { "0" } else { trimmed };
                let text = Number::parse(format!("{value:.1100}").as_bytes()).unwrap().to_text().unwrap();
                prop_assert_eq!(String::from_utf8(text).unwrap(), expected);
            }
        }

        #[test]
        fn any_bytes_are_taken(text: Vec<u8>) {
            Number::parse(&text);
        }
    }
}
