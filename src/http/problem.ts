import type { Context } from "hono";
import type { ContentfulStatusCode } from "hono/utils/http-status";
import { type ErrorCode, InvalidPayloadError, SortieError } from "../errors.ts";

/** The types of problem that the HTTP surface answers with, beside those of `SortieError`. */
type ProblemCode =
  | ErrorCode
  | "unauthorized"
  | "unsupported-media-type"
  | "invalid-request"
  | "not-found"
  | "idempotency-key-reused"
  | "schedule-unknown"
  | "already-fired"
  | "method-not-allowed"
  | "internal";

interface Problem {
  status: ContentfulStatusCode;
  title: string;
  /** Seconds, for a problem that passes. */
  retryAfter?: number;
}

const problems: Partial<Record<ProblemCode, Problem>> = {
  unauthorized: { status: 401, title: "A valid bearer token is needed" },
  "not-found": { status: 404, title: "There is nothing at this path" },
  "method-not-allowed": { status: 405, title: "This path takes another method" },
  "schedule-unknown": { status: 404, title: "There is no such schedule" },
  "already-fired": { status: 409, title: "The schedule has fired" },
  "unknown-subject": { status: 404, title: "The subject is not one of this app's" },
  "payload-too-large": { status: 413, title: "The payload is too large" },
  "unsupported-media-type": { status: 415, title: "The payload must be application/json" },
  "invalid-request": { status: 400, title: "The request is malformed" },
  "invalid-option": { status: 400, title: "The request is malformed" },
  "invalid-payload": { status: 422, title: "The payload does not fit its schema" },
  "schedule-refused": { status: 422, title: "The message cannot be released then" },
  "idempotency-key-reused": { status: 422, title: "The Idempotency-Key belongs to another message" },
  "not-configured": { status: 503, title: "The function lacks a setting", retryAfter: 60 },
  "connection-failed": { status: 503, title: "NATS cannot be reached", retryAfter: 5 },
  "connection-lost": { status: 503, title: "The connection to NATS was lost", retryAfter: 1 },
  "timed-out": { status: 503, title: "NATS did not answer in time", retryAfter: 1 },
  overloaded: { status: 503, title: "The hub has as much to do as it takes", retryAfter: 1 },
  "stream-refused": { status: 503, title: "The stream did not take the message", retryAfter: 5 },
  "stream-missing": { status: 503, title: "The stream does not exist yet", retryAfter: 30 },
};

const internal: Problem = { status: 500, title: "Something went wrong in the function" };

/** An RFC 9457 answer. `type` is stable; `detail` is for the person who reads it. */
export function problem(c: Context, code: ProblemCode, detail: string, more: Record<string, unknown> = {}) {
  const { status, title, retryAfter } = problems[code] ?? internal;
  if (status >= 500) console.error(JSON.stringify({ event: "problem", status, type: code, path: c.req.path, detail }));
  if (retryAfter) c.header("Retry-After", `${retryAfter}`);
  c.header("Content-Type", "application/problem+json");
  return c.body(JSON.stringify({ type: `urn:sortie:problem:${code}`, title, status, detail, ...more }), status);
}

/** A request that is answered with a problem. */
export class RequestError extends Error {
  readonly code: ProblemCode;

  constructor(code: ProblemCode, detail: string) {
    super(detail);
    this.code = code;
  }
}

/** The answer to an error: Sortie's own speak for themselves, all others stay in the log. */
export function problemOf(c: Context, error: unknown) {
  if (error instanceof InvalidPayloadError)
    return problem(c, "invalid-payload", error.message, { errors: error.issues });
  if (error instanceof RequestError) return problem(c, error.code, error.message);
  if (error instanceof SortieError && problems[error.code]) return problem(c, error.code, error.message);
  console.error(error);
  return problem(c, "internal", "The function's log has the error");
}
