import { describe, expect, it } from "vitest";
import * as z from "zod";
import { backoffMs, exponential, fixed } from "../../src/define/retry.ts";
import { assertPattern, covers, isLiteral } from "../../src/define/subject.ts";
import { toMs } from "../../src/duration.ts";
import { createApp, defineConsumer, defineStream } from "../../src/index.ts";

const Order = z.object({ orderId: z.string() });

describe("durations", () => {
  it.each([
    ["250ms", 250],
    ["30s", 30_000],
    ["1.5h", 5_400_000],
    ["7d", 604_800_000],
    [5, 5],
  ] as const)("%s is %d ms", (text, ms) => {
    expect(toMs(text, "x")).toBe(ms);
  });

  it.each(["30", "s", "-1s", "1 s", "1w", -1, NaN, Infinity])("refuses %s with what it expected and where", (text) => {
    expect(() => toMs(text as "1s", "retry")).toThrow(/retry: expected milliseconds or a duration such as "30s".*got/);
  });
});

describe("subjects", () => {
  it.each([
    ["orders.placed", "orders.placed", true],
    ["orders.*", "orders.placed", true],
    ["orders.*", "orders.placed.eu", false],
    ["orders.>", "orders.placed.eu", true],
    ["orders.>", "orders", false],
    ["orders.*.eu", "orders.*.eu", true],
    ["orders.*", "orders.>", false],
    [">", "orders", true],
    ["orders.placed", "orders.*", false],
  ])("%s covers %s: %s", (pattern, subject, expected) => {
    expect(covers(pattern, subject)).toBe(expected);
  });

  it.each(["", "a..b", "a b", ".a", "a.", "a.>.b", "a*", "a\u0000b"])("refuses the pattern %j", (subject) => {
    expect(() => assertPattern(subject, "x")).toThrow(/expected a NATS subject/);
  });

  it("publishes to literal subjects only", () => {
    expect(["a.b", "a.*", "a.>", "a b"].map(isLiteral)).toEqual([true, false, false, false]);
  });
});

describe("defineStream", () => {
  it("is data with the server's units in the names", () => {
    const orders = defineStream("ORDERS", {
      subjects: { "orders.placed": Order },
      captures: ["audit.>"],
      maxAge: "1m",
    });
    expect(orders).toMatchObject({
      name: "ORDERS",
      subjects: ["orders.placed", "audit.>"],
      retention: "limits",
      maxAgeMs: 60_000,
      duplicateWindowMs: 60_000,
      schedules: "server",
    });
    expect(JSON.parse(JSON.stringify(defineStream("DEAD", { captures: ["dead.>"] })))).toMatchObject({
      schedules: false,
      maxAgeMs: 0,
    });
  });

  it.each([
    ["a name with a dot", () => defineStream("a.b", { captures: ["a"] }), /expected a name without/],
    ["no subject", () => defineStream("A", {}), /expected `subjects` or `captures`, got neither/],
    [
      "overlapping subjects",
      () => defineStream("A", { subjects: { "a.*": Order, "a.b": Order } }),
      /"a.\*" already covers "a.b"/,
    ],
    [
      "a longer duplicate window than age",
      () => defineStream("A", { captures: ["a"], maxAge: "1s", duplicateWindow: "2s" }),
      /must not be longer than maxAge/,
    ],
    [
      "interest retention",
      () => defineStream("A", { captures: ["a"], retention: "interest" as "limits" }),
      /drops what is published while no consumer exists/,
    ],
  ])("refuses %s", (_, define, message) => {
    expect(define).toThrow(message);
  });
});

describe("defineConsumer", () => {
  const orders = defineStream("ORDERS", {
    subjects: { "orders.placed": Order, "orders.reminder": Order, "audit.*": Order },
    captures: ["dead.>"],
  });
  const deadLetter = "dead.x";

  it("never filters wider than what the stream has schemas for", () => {
    const filters = (filter?: "orders.placed" | "orders.>" | "audit.eu") =>
      defineConsumer(orders, "c", filter ? { filter, deadLetter } : { deadLetter }).filters;
    expect(filters()).toEqual(["orders.placed", "orders.reminder", "audit.*"]);
    expect(filters("orders.>")).toEqual(["orders.placed", "orders.reminder"]);
    expect(filters("audit.eu")).toEqual(["audit.eu"]);
  });

  it.each([
    [
      "an unknown filter",
      { filter: "nope" as "orders.placed", deadLetter },
      /the filter "nope" matches no subject.*orders.placed, orders.reminder/,
    ],
    [
      "a filter on what has no schema",
      { filter: "dead.>" as "orders.placed", deadLetter },
      /matches no subject that the stream has a schema for/,
    ],
    ["its own dead letters", { deadLetter: "orders.placed" }, /catches its own deadLetter subject/],
    [
      "no dead-letter subject",
      { deadLetter: undefined as unknown as string },
      /expected deadLetter to be a subject without wildcards, got "undefined"/,
    ],
    [
      "a wildcard dead-letter subject",
      { deadLetter: "dead.>" },
      /expected deadLetter to be a subject without wildcards/,
    ],
    ["no concurrency", { deadLetter, concurrency: 0 }, /expected concurrency to be a whole number from 1, got 0/],
    [
      "no attempts",
      { deadLetter, retry: { attempts: 0, backoff: fixed("1s") } },
      /expected retry.attempts to be a whole number from 1, got 0/,
    ],
    [
      "attempts without a backoff",
      { deadLetter, retry: { attempts: 2 } as never },
      /expected retry.backoff to be fixed\("10s"\), exponential\(…\) or list\(…\), got undefined; without `retry` it is/,
    ],
    [
      "a backoff that is a time",
      { deadLetter, retry: { attempts: 2, backoff: "10s" as never } },
      /expected retry.backoff to be fixed.*got "10s"/,
    ],
    ["an ack-wait of nothing", { deadLetter, ackWait: "10ms" as const }, /expected ackWait of a second or more/],
  ])("refuses %s", (_, options, message) => {
    expect(() => defineConsumer(orders, "c", options)).toThrow(message);
  });
});

describe("backoff", () => {
  it("grows to its maximum and stays there", () => {
    const backoff = exponential("1s", { max: "10s" });
    expect([1, 2, 3, 4, 5, 6, 2_000].map((attempt) => backoffMs(backoff, attempt, 0))).toEqual([
      1e3, 2e3, 4e3, 8e3, 10e3, 10e3, 10e3,
    ]);
    expect(backoffMs(fixed("3s"), 7, 0)).toBe(3_000);
  });

  it("refuses a maximum below the first wait", () => {
    expect(() => exponential("10s", { max: "1s" })).toThrow(/max not below the first wait/);
  });
});

describe("a work queue that takes no more when it is full", () => {
  it("does not take the dead letters of its own messages", () => {
    const jobs = defineStream("FULL", {
      subjects: { "full.a": z.string() },
      captures: ["dead.full"],
      retention: "workqueue",
      maxMessages: 10,
    });
    const worker = defineConsumer(jobs, "worker", { deadLetter: "dead.full" });
    expect(() => createApp({ streams: [jobs] }).on(worker, () => {})).toThrow(
      "its dead letters go to its own stream, which takes nothing more when it is full",
    );
  });
});

describe("createApp", () => {
  const orders = defineStream("ORDERS", { subjects: { "orders.placed": Order } });
  const dead = defineStream("DEAD", { captures: ["dead.>"] });
  const billing = defineConsumer(orders, "billing", { deadLetter: "dead.orders" });

  it.each([
    [
      "a consumer of a stream that is not the app's",
      () => createApp({ streams: [dead] }).on(billing, () => {}),
      /expected its stream among the app's/,
    ],
    [
      "two handlers for one consumer",
      () =>
        createApp({ streams: [orders, dead] })
          .on(billing, () => {})
          .on(billing, () => {}),
      /has a handler already/,
    ],
    [
      "dead letters that no stream captures",
      () => createApp({ streams: [orders] }).on(billing, () => {}),
      /no stream of the app captures its dead letters at "dead.orders"/,
    ],
    [
      "an ack-wait that outlasts the memory for ids",
      () =>
        createApp({ streams: [orders, dead] }).on(
          defineConsumer(orders, "slow", { deadLetter: "dead.x", ackWait: "10m" }),
          () => {},
        ),
      /ackWait \(600000 ms\) is not shorter than the duplicateWindow of stream "ORDERS" \(120000 ms\)/,
    ],
  ])("refuses %s", (_, create, message) => {
    expect(create).toThrow(message);
  });
});
