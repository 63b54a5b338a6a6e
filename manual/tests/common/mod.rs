//! What the tests share: command lines in examples.

#![allow(dead_code, reason = "each test program uses some of it")]

/// The calls of `ojail` in a line for a shell, as words.
pub(crate) fn calls(line: &str) -> Vec<Vec<String>> {
    let mut commands = vec![vec![String::new()]];
    let mut quote = None;
    for letter in line.chars() {
        let words = commands.last_mut().unwrap();
        match (quote, letter) {
            (Some(end), _) if letter == end => quote = None,
            (None, '\'' | '"') => quote = Some(letter),
            (None, '#') if words.last().is_some_and(String::is_empty) => break,
            (None, '|' | ';' | '&' | '>' | '<') => commands.push(vec![String::new()]),
            (None, ' ') => words.push(String::new()),
            _ => words.last_mut().unwrap().push(letter),
        }
    }
    let words = |words: Vec<String>| words.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>();
    let commands = commands.into_iter().map(words);
    commands.filter(|words| words.first().is_some_and(|word| word == "ojail")).collect()
}

/// Lets the command's own parser judge every call of it in a line.
#[track_caller]
pub(crate) fn parses(line: &str) {
    for words in calls(line) {
        if let Err(error) = ojail::admin::command().try_get_matches_from(&words) {
            panic!("the example {line:?} is wrong: {error}");
        }
    }
}
