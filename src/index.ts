export { type App, createApp } from "./app.ts";
export { type Client, createClient } from "./client.ts";
export type {
  BatchContext,
  BatchHandler,
  BatchOptions,
  BatchResult,
  Handler,
  HandlerContext,
  PayloadFor,
  PublishableSubject,
} from "./consume/handler.ts";
export type { Place } from "./consume/places.ts";
export type { ConsumerReport, InvocationEvent, InvocationReport } from "./consume/report.ts";
export { NonRetriableError, RetryAfterError } from "./consume/settlement.ts";
export { type DeadLetterReason, deadLetterHeaders } from "./dead-letter/story.ts";
export { type ConsumerDefinition, type ConsumerOptions, defineConsumer } from "./define/consumer.ts";
export type { FanOut, FanOutOptions } from "./define/fan-out.ts";
export type { Message } from "./define/message.ts";
export {
  type Backoff,
  exponential,
  fixed,
  list,
  type RetryDecision,
  type RetryPolicy,
  type RetryRule,
} from "./define/retry.ts";
export { defineStream, type StreamDefinition, type StreamOptions, type Subjects } from "./define/stream.ts";
export type { Duration } from "./duration.ts";
export {
  ConnectionFailedError,
  type ConnectionFailure,
  type ErrorCode,
  InvalidPayloadError,
  type PayloadIssue,
  SortieError,
} from "./errors.ts";
export { type DefinedSchedule, defineSchedule, type ScheduleDefinition } from "./schedule/definition.ts";
export type { CatchUp, Overlap, RecurringOptions } from "./schedule/recurring.ts";
export type { ScheduleOptions } from "./schedule/schedule.ts";
export type {
  Cancelled,
  ListOptions,
  ScheduleList,
  ScheduleStatus,
  Schedules,
  Where,
} from "./schedule/schedules.ts";
export type { When } from "./schedule/when.ts";
export type { Schema } from "./schema.ts";
