//! One source file, looked at without a parser: comments, literals and test modules are blanked out first.

/// A file.
pub struct Source {
    /// From the workspace's root.
    pub path: String,
    /// What it holds.
    pub text: String,
}

impl Source {
    /// It holds tests only.
    pub fn is_test_file(&self) -> bool {
        let name = self.path.rsplit('/').next().unwrap_or_default();
        name == "tests.rs"
            || name.ends_with("_tests.rs")
            || self.path.contains("/tests/")
            || self.path.contains("/benches/")
    }

    /// Lines that hold code, without test modules.
    pub fn code_lines(&self) -> usize {
        without_tests(&blank(&self.text)).lines().filter(|line| !line.trim().is_empty()).count()
    }

    /// Numbers of the lines with the keyword `unsafe`; attributes that speak of it do not count.
    pub fn unsafe_lines(&self) -> Vec<usize> {
        let is_keyword = |line: &str| {
            line.match_indices("unsafe").any(|(at, word)| {
                let letter = |c: char| c.is_alphanumeric() || c == '_';
                let before = line[..at].chars().next_back().is_some_and(letter);
                let after = line[at + word.len()..].chars().next().is_some_and(letter);
                // `#[unsafe(link_section = …)]` is how edition 2024 writes an attribute that the linker has to trust.
                let attribute = line[..at].ends_with("#[");
                !before && !after && !attribute
            })
        };
        blank(&self.text).lines().zip(1..).filter(|(line, _)| is_keyword(line)).map(|(_, n)| n).collect()
    }
}

/// The text with comments and the insides of literals replaced by spaces; lines stay.
pub fn blank(text: &str) -> String {
    let bytes: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut i = 0;
    let put = |out: &mut String, c: char| out.push(if c == '\n' { '\n' } else { ' ' });
    while i < bytes.len() {
        let rest = &bytes[i..];
        let len = match rest {
            ['/', '/', ..] => rest.iter().position(|&c| c == '\n').unwrap_or(rest.len()),
            ['/', '*', ..] => block_comment(rest),
            ['"', ..] => string(rest, 0),
            ['r', '"', ..] | ['r', '#', '"' | '#', ..] if !follows_word(&bytes, i) => raw_string(rest),
            ['\'', '\\', ..] => 3 + rest.iter().skip(3).position(|&c| c == '\'').unwrap_or(0),
            ['\'', _, '\'', ..] => 3,
            _ => {
                out.push(rest[0]);
                i += 1;
                continue;
            }
        };
        for &c in &rest[..len.clamp(1, rest.len())] {
            put(&mut out, c);
        }
        i += len.clamp(1, rest.len());
    }
    out
}

fn follows_word(text: &[char], at: usize) -> bool {
    at.checked_sub(1).and_then(|before| text.get(before)).is_some_and(|c| c.is_alphanumeric() || *c == '_')
}

fn block_comment(rest: &[char]) -> usize {
    let mut depth = 0;
    let mut i = 0;
    while i < rest.len() {
        match &rest[i..] {
            ['/', '*', ..] => {
                depth += 1;
                i += 2;
            }
            ['*', '/', ..] => {
                depth -= 1;
                i += 2;
                if depth == 0 {
                    return i;
                }
            }
            _ => i += 1,
        }
    }
    rest.len()
}

fn string(rest: &[char], start: usize) -> usize {
    let mut i = start + 1;
    while i < rest.len() {
        match rest[i] {
            '\\' => i += 2,
            '"' => return i + 1,
            _ => i += 1,
        }
    }
    rest.len()
}

fn raw_string(rest: &[char]) -> usize {
    let hashes = rest.iter().skip(1).take_while(|&&c| c == '#').count();
    if rest.get(1 + hashes) != Some(&'"') {
        // A raw identifier (`r#type`), not a string.
        return 1;
    }
    let end: Vec<char> = std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
    let body = &rest[2 + hashes..];
    body.windows(end.len()).position(|w| w == end).map_or(rest.len(), |at| 2 + hashes + at + end.len())
}

/// Blanked text without what stands behind `#[cfg(test)]`.
fn without_tests(blanked: &str) -> String {
    let mut out = String::with_capacity(blanked.len());
    let mut rest = blanked;
    while let Some(at) = rest.find("#[cfg(test)]") {
        out.push_str(&rest[..at]);
        rest = &rest[at + "#[cfg(test)]".len()..];
        let (brace, semicolon) = (rest.find('{'), rest.find(';'));
        let end = match (brace, semicolon) {
            (Some(brace), semicolon) if semicolon.is_none_or(|s| brace < s) => {
                let mut depth = 0usize;
                let close = rest[brace..].char_indices().find(|&(_, c)| {
                    match c {
                        '{' => depth += 1,
                        '}' => depth -= 1,
                        _ => {}
                    }
                    depth == 0
                });
                close.map_or(rest.len(), |(at, _)| brace + at + 1)
            }
            (_, Some(semicolon)) => semicolon + 1,
            _ => rest.len(),
        };
        rest = &rest[end..];
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> Source {
        Source { path: "a/src/b.rs".into(), text: text.into() }
    }

    #[test]
    fn comments_blank_lines_and_tests_do_not_count() {
        let text = "//! head\n\nuse a; // why\n/* two\nlines */\nfn f() {\n    g(\"// no comment\");\n}\n\n#[cfg(test)]\nmod tests {\n    fn t() { if x { } }\n}\nfn after() {}\n";
        assert_eq!(source(text).code_lines(), 5);
        assert_eq!(source("#[cfg(test)]\nmod tests;\nfn a() {}\n").code_lines(), 1);
    }

    #[test]
    fn the_keyword_is_told_from_words_strings_and_lint_names() {
        let text = "unsafe fn a() {}\nlet unsafe_code = 1;\n// unsafe\n\"unsafe\";\nr#\"unsafe \" unsafe\"#;\n'\"'; unsafe {}\n#[unsafe(no_mangle)]\nlet c = '\\''; unsafe {}\n";
        assert_eq!(source(text).unsafe_lines(), [1, 6, 8]);
    }

    #[test]
    fn lifetimes_are_no_characters() {
        assert_eq!(source("fn a<'a>(x: &'a str) { unsafe {} }").unsafe_lines(), [1]);
    }
}
