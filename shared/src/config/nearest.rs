//! The known word that was probably meant.

/// How many letters of a word, one in this many, may be wrong for it to be a slip of the pen rather than another word.
const LETTERS_PER_SLIP: usize = 3;

/// The candidate nearest to `word`, if one is near: at most a third of its letters differ, case and `-` for `_` aside.
pub(super) fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = plain(word);
    let slips = (word.chars().count() / LETTERS_PER_SLIP).max(1);
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&word, &plain(candidate)), candidate))
        .filter(|(distance, _)| *distance <= slips)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// `"a"`, or `"a" or "b"`, or `"a", "b" or "c"`: the words in quotes, for a hint.
pub(super) fn one_of<'a>(words: impl IntoIterator<Item = &'a str>) -> String {
    let quoted: Vec<String> = words.into_iter().map(|word| format!("{word:?}")).collect();
    match quoted.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, others)) => format!("{} or {last}", others.join(", ")),
        None => String::new(),
    }
}

fn plain(word: &str) -> String {
    word.to_lowercase().replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_finds_the_word_and_another_word_finds_none() {
        let known = ["hang_timeout", "boot_timeout", "count", "head"];
        let cases = [
            ("hang_timout", Some("hang_timeout")),
            ("hang-timeout", Some("hang_timeout")),
            ("COUNT", Some("count")),
            ("cuont", Some("count")),
            ("haed", Some("head")),
            ("body", None),
            ("listen", None),
            ("", None),
        ];
        for (word, expected) in cases {
            assert_eq!(nearest(word, known), expected, "{word}");
        }
    }

    #[test]
    fn words_are_listed_with_or_before_the_last() {
        assert_eq!(one_of(["a"]), r#""a""#);
        assert_eq!(one_of(["a", "b", "c"]), r#""a", "b" or "c""#);
    }
}
