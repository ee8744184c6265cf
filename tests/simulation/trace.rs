//! What happened, line by line, while somebody wants to know.

use std::cell::RefCell;
use std::collections::VecDeque;

thread_local! {
    static TRACE: RefCell<Option<(usize, VecDeque<String>)>> = const { RefCell::new(None) };
}

/// Notes lines from now on in this thread, and keeps the last `lines_max`.
pub(crate) fn start(lines_max: usize) {
    TRACE.set(Some((lines_max, VecDeque::new())));
}

/// The lines; nothing is noted any more.
pub(crate) fn take() -> Vec<String> {
    TRACE.take().map(|(_, lines)| lines.into()).unwrap_or_default()
}

pub(crate) fn is_on() -> bool {
    TRACE.with_borrow(Option::is_some)
}

pub(crate) fn note(line: String) {
    TRACE.with_borrow_mut(|trace| {
        if let Some((lines_max, lines)) = trace {
            if lines.len() >= *lines_max {
                lines.pop_front();
            }
            lines.push_back(line);
        }
    });
}

/// Notes a line, which is made up only if it is wanted.
#[macro_export]
macro_rules! trace {
    ($($part:tt)*) => {
        if $crate::trace::is_on() {
            $crate::trace::note(format!($($part)*));
        }
    };
}
