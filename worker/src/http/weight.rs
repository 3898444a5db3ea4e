//! Weights of what a peer would like (RFC 9110, 12.4.2).

/// A weight in thousandths: 0 (not acceptable) to 1000.
pub(crate) type Weight = u16;

/// The weight that a parameter `q=…` gives; none when it is another parameter, or malformed.
pub(crate) fn of(parameter: &[u8]) -> Option<Weight> {
    match parameter {
        [b'q' | b'Q', b'=', value @ ..] => qvalue(value),
        _ => None,
    }
}

/// 0 to 1 with at most three decimals.
fn qvalue(value: &[u8]) -> Option<Weight> {
    let (whole, decimals) = match value {
        [whole @ (b'0' | b'1')] => (whole, &[][..]),
        [whole @ (b'0' | b'1'), b'.', decimals @ ..] if decimals.len() <= 3 => (whole, decimals),
        _ => return None,
    };
    let mut weight = Weight::from(whole - b'0') * 1000;
    for (digit, unit) in decimals.iter().zip([100, 10, 1]) {
        weight += digit.is_ascii_digit().then(|| Weight::from(digit - b'0'))? * unit;
    }
    (weight <= 1000).then_some(weight)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weight_has_at_most_three_decimals_and_is_at_most_one() {
        for (parameter, weight) in
            [("q=1", 1000), ("Q=0", 0), ("q=0.5", 500), ("q=0.001", 1), ("q=1.", 1000), ("q=1.000", 1000)]
        {
            assert_eq!(of(parameter.as_bytes()), Some(weight), "{parameter}");
        }
        for parameter in ["", "q", "q=", "q=2", "q=1.001", "q=0.0001", "q=.5", "q=-0", "q = 1", "level=1"] {
            assert_eq!(of(parameter.as_bytes()), None, "{parameter}");
        }
    }
}
