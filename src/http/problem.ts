import type { Context } from "hono";
import type { ContentfulStatusCode } from "hono/utils/http-status";
import { type ErrorCode, InvalidPayloadError, SortieError, textOf } from "../errors.ts";
import { isDenied } from "../nats/denied.ts";
import { isConnectionLost, isNoResponders, isTimeout } from "../nats/jetstream.ts";

/** The types of problem that the HTTP surface answers with, beside those of `SortieError`. */
export type ProblemCode =
  | ErrorCode
  | "unauthorized"
  | "forbidden"
  | "too-many-requests"
  | "consumer-unknown"
  | "unsupported-media-type"
  | "invalid-request"
  | "not-found"
  | "idempotency-key-reused"
  | "schedule-unknown"
  | "already-fired"
  | "request-timeout"
  | "method-not-allowed"
  | "internal";

interface Problem {
  status: ContentfulStatusCode;
  title: string;
  /** Seconds, for a problem that passes: callers are told up to twice as many, so that they do not all come back at once. */
  retryAfter?: number;
}

const problems: Partial<Record<ProblemCode, Problem>> = {
  unauthorized: { status: 401, title: "Valid credentials are needed" },
  forbidden: { status: 403, title: "These credentials are not for this" },
  "too-many-requests": { status: 429, title: "This caller has asked too often" },
  "not-found": { status: 404, title: "There is nothing at this path" },
  "method-not-allowed": { status: 405, title: "This path takes another method" },
  "schedule-unknown": { status: 404, title: "There is no such schedule" },
  "consumer-unknown": { status: 404, title: "There is no such consumer" },
  "already-fired": { status: 409, title: "The schedule has fired" },
  "unknown-subject": { status: 404, title: "The subject is not one of this app's" },
  "request-timeout": { status: 408, title: "The request took too long to come" },
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
  "permission-denied": { status: 503, title: "The function lacks a permission in NATS", retryAfter: 60 },
  "stream-missing": { status: 503, title: "The stream does not exist yet", retryAfter: 30 },
  "invocation-failed": { status: 503, title: "The invocation could not do all of its work", retryAfter: 30 },
};

const internal: Problem = { status: 500, title: "Something went wrong in the function" };

/** All that the HTTP surface answers with. */
export const problemCodes = Object.keys(problems) as ProblemCode[];

/** The status that a problem is answered with. */
export function statusOf(code: ProblemCode): number {
  return (problems[code] ?? internal).status;
}

/** What a problem is called by whoever reads it. */
export function typeOf(code: ProblemCode): string {
  return `urn:sortie:problem:${code}`;
}

/** An RFC 9457 answer. `type` is stable; `detail` is for the person who reads it, and `logged` for whoever reads the log. */
export function problem(
  c: Context,
  code: ProblemCode,
  detail: string,
  { logged = detail, ...more }: { logged?: string; errors?: unknown } = {},
) {
  const { status, title, retryAfter } = problems[code] ?? internal;
  if (status >= 500)
    console.error(JSON.stringify({ event: "problem", status, type: code, path: c.req.path, detail: logged }));
  if (retryAfter) c.header("Retry-After", `${Math.round(retryAfter * (1 + Math.random()))}`);
  if (code === "unauthorized") c.header("WWW-Authenticate", 'Bearer realm="sortie"');
  c.header("Content-Type", "application/problem+json");
  return c.body(JSON.stringify({ type: typeOf(code), title, status, detail, ...more }), status);
}

/** A request that is answered with a problem. */
export class RequestError extends Error {
  readonly code: ProblemCode;
  /** When it may be tried again, where that is known: in so many seconds. */
  readonly retryAfter: number | undefined;

  constructor(code: ProblemCode, detail: string, retryAfter?: number) {
    super(detail);
    this.code = code;
    this.retryAfter = retryAfter;
  }
}

/** The answer to an error: Sortie's own speak for themselves, all others stay in the log. */
export function problemOf(c: Context, error: unknown) {
  if (error instanceof InvalidPayloadError)
    return problem(c, "invalid-payload", error.message, { errors: error.issues });
  if (error instanceof RequestError) {
    if (error.retryAfter) c.header("Retry-After", `${error.retryAfter}`);
    return problem(c, error.code, error.message);
  }
  if (error instanceof SortieError && error.code === "connection-failed") {
    // where NATS is, and how one logs in there, is nothing to callers
    const detail = "NATS did not take the connection; the function's log says why";
    return problem(c, error.code, detail, { logged: error.message });
  }
  if (error instanceof SortieError && error.code === "not-configured") {
    const setting = /^(NATS|SORTIE)_[A-Z_]+/.exec(error.message)?.[0] ?? "A setting";
    const detail = `${setting} is not as expected; the function's log says why`; // it may hold where NATS is, or a secret
    return problem(c, error.code, detail, { logged: error.message });
  }
  if (error instanceof SortieError && problems[error.code]) return problem(c, error.code, error.message);
  // the client's own, where nobody has put it into our words
  const logged = textOf(error);
  if (isTimeout(error) || isNoResponders(error)) return problem(c, "timed-out", "Try again later", { logged });
  if (isConnectionLost(error)) return problem(c, "connection-lost", "Try again later", { logged });
  if (isDenied(error))
    return problem(c, "permission-denied", "The server refuses this login what is needed here", { logged });
  console.error(error);
  return problem(c, "internal", "The function's log has the error");
}
