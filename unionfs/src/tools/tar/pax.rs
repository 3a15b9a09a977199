//! Pax records: `LENGTH KEY=VALUE\n`, where the length counts all of it and the value may be any bytes.

use crate::request::Timestamp;

/// Appends a record.
pub(super) fn push(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    // The length counts its own digits.
    let mut length = rest + 1;
    while rest + decimal_digits(length) != length {
        length = rest + decimal_digits(length);
    }
    records.extend_from_slice(format!("{length} ").as_bytes());
    records.extend_from_slice(key);
    records.push(b'=');
    records.extend_from_slice(value);
    records.push(b'\n');
}

const fn decimal_digits(number: usize) -> usize {
    number.ilog10() as usize + 1
}

/// Splits records into keys and values; `None` if they are malformed.
pub(super) fn parse(mut records: &[u8]) -> Option<Vec<(&[u8], &[u8])>> {
    let mut found = Vec::new();
    while !records.is_empty() {
        let space = records.iter().position(|&byte| byte == b' ')?;
        let length = usize::try_from(number(records.get(..space)?)?).ok()?;
        let record = records.get(space + 1..length)?.strip_suffix(b"\n")?;
        let equals = record.iter().position(|&byte| byte == b'=')?;
        found.push((record.get(..equals)?, record.get(equals + 1..)?));
        records = records.get(length..)?;
    }
    Some(found)
}

/// Reads a decimal number without sign.
pub(super) fn number(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Writes a time: seconds, and as many digits of a fraction as it needs.
pub(super) fn time_text(time: Timestamp) -> String {
    let total = i128::from(time.sec) * 1_000_000_000 + i128::from(time.nsec);
    let (sign, total) = if total < 0 { ("-", -total) } else { ("", total) };
    let text = format!("{sign}{}.{:09}", total / 1_000_000_000, total % 1_000_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Reads a time; digits beyond nanoseconds are dropped.
pub(super) fn parse_time(text: &[u8]) -> Option<Timestamp> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (whole, fraction) = match text.iter().position(|&byte| byte == b'.') {
        Some(dot) => (text.get(..dot)?, text.get(dot + 1..)?),
        None => (text, &b""[..]),
    };
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let mut nanoseconds = 0_i128;
    for place in 0..9 {
        nanoseconds = nanoseconds * 10 + fraction.get(place).map_or(0, |digit| i128::from(digit - b'0'));
    }
    let total = i128::from(number(whole)?) * 1_000_000_000 + nanoseconds;
    let total = if negative { -total } else { total };
    Some(Timestamp {
        sec: i64::try_from(total.div_euclid(1_000_000_000)).ok()?,
        nsec: u32::try_from(total.rem_euclid(1_000_000_000)).ok()?,
    })
}
