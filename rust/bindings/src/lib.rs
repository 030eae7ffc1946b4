//! `lb._core`: the PyO3 border.
