//! Conversations put together.
