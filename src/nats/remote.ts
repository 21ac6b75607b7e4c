import {
  type Msg,
  MsgHdrsImpl,
  NoRespondersError,
  PermissionViolationError,
  RequestError,
  TimeoutError,
} from "@nats-io/nats-core";
import { type ErrorCode, SortieError, textOf } from "../errors.ts";
import type { Connection } from "./connection.ts";
import { isConnectionLost, isNoResponders, isTimeout } from "./jetstream.ts";

// A connection that someone else holds: what crosses between the two is plain data.

/** What a borrower has to know of a connection before it uses it. */
export interface About {
  readonly info: NonNullable<Connection["info"]>;
  readonly inboxPrefix?: string | undefined;
}

/** Who holds a connection and lends it to others. */
export interface Lender {
  /** What the server is; `error` where it cannot be reached within `ms`. */
  about(ms: number): Promise<About | { readonly error: WireError }>;
  /** Asks, and answers what the server did. */
  request(asked: WireRequest): Promise<WireAnswer>;
  /** For who publishes without asking, and subscribes. */
  session(version: string): Promise<LentSession>;
}

/** As it looks from elsewhere: a session can be used before it is there (Workers RPC pipelines what is asked of it). */
export interface RemoteLender extends Omit<Lender, "session"> {
  session(version: string): LentSession & Partial<Disposable>;
}

/** What one borrower does over the connection; its subscriptions end with it. */
export interface LentSession {
  /** Carries out in this order. */
  send(orders: readonly WireOrder[]): Promise<void>;
  request(asked: WireRequest): Promise<WireAnswer>;
  /** What has come since; waits a while where nothing has. The last that comes is `closed`. */
  next(): Promise<readonly WireNews[]>;
  end(): Promise<void>;
}

export interface WireRequest extends WirePublish {
  readonly timeout: number;
  /** Of the server that the borrower has made up its mind for. */
  readonly version: string;
}

export interface WirePublish {
  readonly subject: string;
  readonly payload: Uint8Array | string;
  /** As they go to the server. */
  readonly headers?: Uint8Array | undefined;
  readonly reply?: string | undefined;
}

export type WireOrder =
  | { readonly publish: WirePublish }
  | { readonly subscribe: number; readonly subject: string; readonly queue?: string | undefined }
  | { readonly unsubscribe: number };

export type WireNews =
  | { readonly to: number; readonly message: WireMessage }
  | { readonly to: number; readonly error: WireError }
  /** A subject that may not be published to. */
  | { readonly denied: string }
  | { readonly closed: WireError };

export type WireAnswer = { readonly message: WireMessage } | { readonly error: WireError };

export interface WireMessage {
  readonly subject: string;
  readonly data: Uint8Array;
  readonly headers?: Uint8Array | undefined;
  readonly reply?: string | undefined;
}

export type WireError =
  | { readonly kind: "sortie"; readonly code: ErrorCode; readonly message: string }
  | { readonly kind: "no-responders" | "timeout" }
  | {
      readonly kind: "denied";
      readonly message: string;
      readonly operation: "publish" | "subscription";
      readonly subject: string;
      readonly queue?: string | undefined;
    }
  | { readonly kind: "other"; readonly name: string; readonly message: string };

/** Its own bytes, and not all that lie beside them. */
export function ownBytes(data: Uint8Array): Uint8Array {
  return data.length === data.buffer.byteLength ? data : data.slice();
}

export function messageToWire(message: Msg): WireMessage {
  const { subject, data, reply } = message;
  return { subject, data: ownBytes(data), reply, headers: headersOf(message) };
}

/** None where the client cannot take them apart. */
function headersOf(message: Msg): Uint8Array | undefined {
  try {
    return (message.headers as MsgHdrsImpl | undefined)?.encode();
  } catch {
    return undefined;
  }
}

/** The bytes that a message takes. */
export function lengthOf({ subject, reply, headers, data }: WireMessage): number {
  return subject.length + (reply?.length ?? 0) + (headers?.length ?? 0) + data.length;
}

/** A message as the client would have made it. */
export function messageFromWire(wired: WireMessage, answer: Connection["publish"]): Msg {
  const { subject, data, reply, headers } = wired;
  const text = () => new TextDecoder().decode(data);
  let decoded: MsgHdrsImpl | undefined;
  const message: Msg & { size(): number } = {
    subject,
    sid: 0,
    data,
    ...(reply !== undefined && { reply }),
    get headers() {
      if (headers) decoded ??= MsgHdrsImpl.decode(headers);
      return decoded as MsgHdrsImpl;
    },
    respond(payload, options) {
      if (reply) answer(reply, payload, options);
      return reply !== undefined;
    },
    json: <T>() => JSON.parse(text()) as T,
    string: text,
    size: () => lengthOf(wired),
  };
  return message;
}

export function errorToWire(error: unknown): WireError {
  const cause = error instanceof Error ? error.cause : undefined;
  const denied = [error, cause].find((one) => one instanceof PermissionViolationError);
  if (denied) {
    const { message, operation, subject, queue } = denied;
    return { kind: "denied", message, operation, subject, queue };
  }
  if (error instanceof SortieError) return { kind: "sortie", code: error.code, message: error.message };
  if (isNoResponders(error)) return { kind: "no-responders" };
  if (isTimeout(error)) return { kind: "timeout" };
  if (isConnectionLost(error)) return { kind: "sortie", code: "connection-lost", message: lost(error) };
  const { name, message } = error instanceof Error ? error : new Error(String(error));
  return { kind: "other", name, message };
}

function lost(error: unknown): string {
  return `The hub's connection to NATS was lost: ${textOf(error)}`;
}

/** The error as the client would have thrown it; `subject` is what was asked. */
export function errorFromWire(error: WireError, subject = ""): Error {
  switch (error.kind) {
    case "sortie":
      return new SortieError(error.code, error.message);
    case "no-responders": {
      const cause = new NoRespondersError(subject);
      return new RequestError(cause.message, { cause });
    }
    case "timeout":
      return new TimeoutError();
    case "denied":
      return new PermissionViolationError(error.message, error.operation, error.subject, error.queue);
    case "other":
      return Object.assign(new Error(error.message), { name: error.name });
  }
}
