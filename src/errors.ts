/** What went wrong, as a word that does not change between versions; the HTTP surface uses it as the problem's type. */
export type ErrorCode =
  | "invalid-definition"
  | "invalid-option"
  | "invalid-payload"
  | "unknown-subject"
  | "connection-failed"
  | "connection-lost"
  | "timed-out"
  | "overloaded"
  | "stream-missing"
  | "consumer-missing"
  | "stream-refused"
  | "permission-denied"
  | "record-conflict"
  | "payload-too-large"
  | "schedule-refused"
  | "provision-refused"
  | "not-configured"
  | "invocation-failed";

/** Every error that Sortie itself raises. The message says what was expected, what was got and what to do. */
export class SortieError extends Error {
  override name = "SortieError";
  readonly code: ErrorCode;

  constructor(code: ErrorCode, message: string, options?: ErrorOptions) {
    super(message, options);
    this.code = code;
  }
}

/** One reason why a payload does not fit its schema. */
export interface PayloadIssue {
  /** Where in the payload, as in `items[0].price`; empty for the payload itself. */
  path: string;
  message: string;
}

/** A payload does not fit the schema of its subject. */
export class InvalidPayloadError extends SortieError {
  override name = "InvalidPayloadError";
  readonly issues: readonly PayloadIssue[];

  constructor(subject: string, issues: readonly PayloadIssue[]) {
    const details = issues.map(({ path, message }) => (path ? `${path}: ${message}` : message)).join("; ");
    super("invalid-payload", `The payload does not fit the schema of "${subject}": ${details}`);
    this.issues = issues;
  }
}

/**
 * How far a function came on its way into NATS: the `address` (DNS, refused, no answer), `tls`, something else than NATS's
 * `websocket` there, `authentication`, a `permission` that nothing can do without, a `limit` of the server or the account on
 * connections, or it got in and was `lost` again.
 */
export type ConnectionFailure = "address" | "tls" | "websocket" | "lost" | "limit" | "authentication" | "permission";

/** NATS could not be reached, or did not let this function in. Of several servers the one counts that let it in furthest. */
export class ConnectionFailedError extends SortieError {
  override name = "ConnectionFailedError";
  readonly reason: ConnectionFailure;

  constructor(reason: ConnectionFailure, message: string, options?: ErrorOptions) {
    super("connection-failed", message, options);
    this.reason = reason;
  }
}

/** A value that was got instead of what was expected, in a line, for errors; it holds for whatever may be given. */
export function shown(value: unknown): string {
  if (value instanceof Date && Number.isNaN(value.getTime())) return "an invalid Date";
  if (typeof value === "bigint") return `${value}n`;
  if (typeof value === "function") return "a function";
  if (typeof value === "number") return `${value}`; // JSON has neither NaN nor Infinity
  try {
    return (JSON.stringify(value) ?? String(value)).slice(0, 300);
  } catch {
    return "what JSON cannot carry";
  }
}

/** An error in a line, with its cause, for logs and headers; it holds for whatever a handler may throw. */
export function textOf(error: unknown): string {
  try {
    if (error instanceof Error) {
      const { name, message, cause } = error;
      const more = cause instanceof Error && !(error instanceof SortieError) && !message.includes(cause.message);
      return more ? `${name}: ${message} (${cause.name}: ${cause.message})` : `${name}: ${message}`;
    }
    if (error instanceof Response) return `HTTP ${error.status} ${error.statusText}`.trim();
    return Object.prototype.toString.call(error) === "[object Object]" ? JSON.stringify(error) : String(error);
  } catch {
    return "something that cannot be shown as text";
  }
}
