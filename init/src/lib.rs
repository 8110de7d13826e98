//! The command line of Millrace.
