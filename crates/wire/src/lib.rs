//! The IoT Hub wire contract: topics, property bags, headers, DTOs, API versions, error table. No I/O.
