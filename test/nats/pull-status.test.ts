import { headers, type Msg, type MsgHdrsImpl } from "@nats-io/nats-core/internal";
import { describe, expect, it } from "vitest";
import { SortieError } from "../../src/errors.ts";
import { endOf, givenBy, type Limits } from "../../src/nats/pull-status.ts";

const what = 'Consumer "worker" of stream "JOBS"';
const unlimited = (): Limits => ({ batch: Infinity, expiresMs: Infinity, maxBytes: Infinity, outstanding: false });

/** A status as the server sends it. */
function status(code: number, description: string, pending?: number): Msg {
  const hdrs = headers(code, description) as MsgHdrsImpl;
  if (pending !== undefined) hdrs.set("Nats-Pending-Messages", `${pending}`);
  return { headers: hdrs } as unknown as Msg;
}

interface Case {
  readonly code: number;
  readonly description: string;
  readonly received?: number;
  readonly pending?: number;
  readonly outstanding?: boolean;
}

describe("a status ends a request", () => {
  it.each<[string, Case]>([
    ["drained", { code: 404, description: "No Messages" }],
    ["drained", { code: 404, description: "No Messages", received: 3 }],
    ["drained", { code: 404, description: "No Messages", pending: 9 }],
    ["drained", { code: 404, description: "No Messages", outstanding: true }],
    ["lapsed", { code: 404, description: "No Messages", pending: 9, outstanding: true }],
    ["full", { code: 408, description: "Requests Pending" }],
    ["lapsed", { code: 408, description: "Request Timeout" }],
    ["lapsed", { code: 408, description: "Request Timeout", pending: 9 }],
    ["more", { code: 408, description: "Request Timeout", received: 1, pending: 9 }],
    ["drained", { code: 408, description: "Request Timeout", received: 1 }],
    ["oversized", { code: 409, description: "Message Size Exceeds MaxBytes", pending: 1 }],
    ["more", { code: 409, description: "Message Size Exceeds MaxBytes", received: 1 }],
    ["more", { code: 409, description: "Batch Completed" }],
    ["again", { code: 409, description: "Leadership Change" }],
    ["again", { code: 409, description: "Server Shutdown" }],
    ["again", { code: 409, description: "Exceeded MaxWaiting" }],
    ["again", { code: 409, description: "Consumer is push based, no interest" }],
    ["gone", { code: 503, description: "No Responders" }],
  ])("as %s: %j", (end, { code, description, received = 0, pending = 0, outstanding = false }) => {
    const limits = { ...unlimited(), outstanding };
    expect(endOf(status(code, description), received, pending, what, limits)).toBe(end);
    expect(limits).toEqual({ ...unlimited(), outstanding });
  });

  it.each([
    ["consumer-missing", 409, "Consumer Deleted", /"worker" of stream "JOBS" does not exist.*npx sortie apply/],
    ["stream-refused", 409, "Consumer is push based", /refused a pull: Consumer is push based/],
    ["stream-refused", 400, "Bad Request", /status 400 Bad Request/],
  ])("with an error, %s: %i %s", (code, status_, description, message) => {
    const end = endOf(status(status_, description), 0, 0, what, unlimited());
    expect(end).toBeInstanceOf(SortieError);
    expect(end).toMatchObject({ code, message: expect.stringMatching(message) });
  });

  it.each<[string, Partial<Limits>]>([
    ["Exceeded MaxRequestBatch of 3", { batch: 3 }],
    ["Exceeded MaxRequestMaxBytes of 2000", { maxBytes: 2_000 }],
    ["Exceeded MaxRequestExpires of 250ms", { expiresMs: 250 }],
    ["Exceeded MaxRequestExpires of 1m30s", { expiresMs: 90_000 }],
    ["Exceeded MaxRequestExpires of 1.5s", { expiresMs: 1_500 }],
    ["Exceeded MaxRequestExpires of 1h0m0s", { expiresMs: 3_600_000 }],
    ["Exceeded MaxRequestExpires of 500µs", { expiresMs: 0.5 }],
  ])("as limited, and the limit is known then: %s", (description, known) => {
    const limits = unlimited();
    expect(endOf(status(409, description), 0, 0, what, limits)).toBe("limited");
    expect(limits).toEqual({ ...unlimited(), ...known });
  });
});

describe("what a status says of the deliveries that a request was given", () => {
  it.each<[number | undefined, Msg]>([
    [10, status(409, "Batch Completed")],
    [7, status(408, "Request Timeout", 3)],
    [10, status(408, "Request Timeout", 0)],
    [0, status(404, "No Messages", 10)],
    [undefined, status(404, "No Messages")],
    [undefined, status(503, "No Responders")],
  ])("is %s of ten", (given, message) => {
    expect(givenBy(message, 10)).toBe(given);
  });
});
