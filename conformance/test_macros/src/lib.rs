//! Stands in for the attribute of the redis crate's repository that its published tests use: an async function becomes a
//! test that runs on tokio, with a connection to a server of its own if it takes one, and twice if it takes a `bool`.

use proc_macro::{Delimiter, Group, TokenStream, TokenTree};

/// Makes a test of an async function.
#[proc_macro_attribute]
pub fn async_test(_: TokenStream, item: TokenStream) -> TokenStream {
    let tokens: Vec<TokenTree> = item.into_iter().collect();
    let position = |word: &str| tokens.iter().position(|t| matches!(t, TokenTree::Ident(i) if i.to_string() == word));
    let (Some(start), Some(at)) = (position("async"), position("fn")) else { return error("not an async function") };
    let Some(TokenTree::Ident(name)) = tokens.get(at + 1) else { return error("a function without a name") };
    let parameters = tokens[at..].iter().find_map(|t| match t {
        TokenTree::Group(group) if group.delimiter() == Delimiter::Parenthesis => Some(Group::stream(group).to_string()),
        _ => None,
    });
    let call = match parameters.unwrap_or_default() {
        none if none.is_empty() => format!("{name}().await"),
        flag if flag.ends_with("bool") => format!("{{ {name}(false).await; {name}(true).await }}"),
        _ => format!("{name}(TestContext::new().async_connection().await.unwrap()).await"),
    };
    let returns = tokens[at..].windows(2).any(|two| two[0].to_string() == "-" && two[1].to_string() == ">");
    let checked = if returns { ".unwrap()" } else { "" };
    let attributes: TokenStream = tokens[..start].iter().cloned().collect();
    let function: TokenStream = tokens[start..].iter().cloned().collect();
    let test = format!(
        "{attributes} #[test] fn {name}() {{ {function} block_on_all(async {{ {call}{checked}; }}, RuntimeType::Tokio); }}"
    );
    test.parse().unwrap_or_else(|_| error("cannot be made a test"))
}

fn error(text: &str) -> TokenStream {
    format!("compile_error!({text:?});").parse().unwrap_or_default()
}
