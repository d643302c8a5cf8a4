#![doc = include_str!("../README.md")]

pub mod doctor;
pub mod emulator;
pub mod gateway;
pub mod review;

mod meaning;
