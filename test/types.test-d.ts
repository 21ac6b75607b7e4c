import { describe, expectTypeOf, it } from "vitest";
import * as z from "zod";
import { createApp, defineConsumer, defineStream } from "../src/index.ts";

const orders = defineStream("ORDERS", {
  subjects: {
    "orders.placed": z.object({ orderId: z.string(), cents: z.coerce.number<string>() }),
    "orders.reminder": z.object({ orderId: z.string(), urgent: z.boolean().default(false) }),
    "audit.*.seen": z.string(),
  },
  captures: ["dead.>"],
});
const images = defineStream("IMAGES", { subjects: { "images.resize": z.object({ url: z.string() }) } });
const app = () => createApp({ streams: [orders, images] });
const deadLetter = "dead.x";

describe("a handler's message", () => {
  it("has its schema's output", () => {
    const billing = defineConsumer(orders, "billing", { filter: "orders.placed", deadLetter });
    app().on(billing, ({ data, subject }) => {
      expectTypeOf(data).toEqualTypeOf<{ orderId: string; cents: number }>();
      expectTypeOf(subject).toEqualTypeOf<"orders.placed">();
      // @ts-expect-error the filter leaves no reminder
      data.urgent;
    });
  });

  it("is a union that its subject narrows where the filter lets several through", () => {
    const all = defineConsumer(orders, "all", { filter: "orders.*", deadLetter });
    app().on(all, (message) => {
      expectTypeOf(message.subject).toEqualTypeOf<"orders.placed" | "orders.reminder">();
      if (message.subject === "orders.reminder")
        expectTypeOf(message.data).toEqualTypeOf<{ orderId: string; urgent: boolean }>();
    });
  });

  it("is of every subject without a filter", () => {
    app().on(defineConsumer(orders, "every", { deadLetter }), ({ subject }) => {
      expectTypeOf(subject).toEqualTypeOf<"orders.placed" | "orders.reminder" | `audit.${string}.seen`>();
    });
  });

  it("comes through several filters, and through one narrower than its subject", () => {
    app().on(defineConsumer(orders, "two", { filter: ["orders.placed", "audit.eu.seen"], deadLetter }), ({ data }) => {
      expectTypeOf(data).toEqualTypeOf<{ orderId: string; cents: number } | string>();
    });
  });
});

describe("a handler of batches", () => {
  const all = defineConsumer(orders, "all", { filter: "orders.*", deadLetter });

  it("is given messages as a handler is given one", () => {
    app().handleBatch(all, (messages) => {
      expectTypeOf(messages).toExtend<readonly unknown[]>();
      for (const message of messages) {
        expectTypeOf(message.subject).toEqualTypeOf<"orders.placed" | "orders.reminder">();
        if (message.subject === "orders.reminder")
          expectTypeOf(message.data).toEqualTypeOf<{ orderId: string; urgent: boolean }>();
      }
      // @ts-expect-error they are not the handler's to change
      messages.length = 0;
    });
  });

  it("returns nothing, or what has failed", () => {
    app().handleBatch(all, () => {}, { size: 5 });
    app().handleBatch(all, async () => {});
    app().handleBatch(all, (messages) => ({ failed: messages.map(({ sequence }) => ({ sequence, error: "x" })) }));
    app().handleBatch(all, async (messages) => {
      if (messages.length > 1) return { failed: [] };
    });
    // @ts-expect-error a result for each would be taken for success
    app().handleBatch(all, (messages) => Promise.all(messages.map(async () => {})));
    // @ts-expect-error another platform's word for it
    app().handleBatch(all, () => ({ batchItemFailures: [] }));
    // @ts-expect-error which error it was
    app().handleBatch(all, ([message]) => ({ failed: [{ sequence: message?.sequence ?? 0 }] }));
    // @ts-expect-error a sequence is a number
    app().handleBatch(all, () => ({ failed: [{ sequence: "1", error: "x" }] }));
  });

  it("publishes for one of its messages", () => {
    app().handleBatch(all, async (messages, context) => {
      for (const message of messages) {
        const { publish, schedule } = context.of(message);
        await publish("images.resize", { url: "x" });
        await schedule("orders.reminder", { orderId: "1" }, { in: "24h" });
        // @ts-expect-error an unknown subject
        await publish("orders.cancelled", { orderId: "1" });
      }
      // @ts-expect-error for which message?
      context.publish;
    });
  });
});

describe("a consumer", () => {
  it("names a message's key by what its filter lets through", () => {
    const key = ({ data }: { data: { orderId: string } }) => data.orderId;
    defineConsumer(orders, "x", { filter: "orders.placed", deadLetter, idempotency: { ttl: "1h", key } });
    const idempotency = { ttl: "1h" } as const;
    defineConsumer(orders, "x", {
      filter: "orders.placed",
      deadLetter,
      idempotency: { ...idempotency, key: ({ data }) => `${data.cents}` },
    });
    defineConsumer(orders, "x", {
      filter: "orders.reminder",
      deadLetter,
      // @ts-expect-error a reminder has no price
      idempotency: { ...idempotency, key: ({ data }) => `${data.cents}` },
    });
  });

  it("takes only filters that its stream knows", () => {
    // @ts-expect-error no such subject
    () => defineConsumer(orders, "x", { filter: "orders.cancelled", deadLetter });
    // @ts-expect-error one of two
    () => defineConsumer(orders, "x", { filter: ["orders.placed", "orders.cancelled"], deadLetter });
    const both = ["orders.placed", "audit.eu.seen"] as const;
    () => defineConsumer(orders, "x", { filter: both, deadLetter });
    // @ts-expect-error a wildcard is one token
    () => defineConsumer(orders, "x", { filter: "*", deadLetter });
    // @ts-expect-error what has no schema cannot be handled
    () => defineConsumer(orders, "x", { filter: "dead.y", deadLetter });
    // @ts-expect-error nothing is lost for want of a dead-letter subject
    () => defineConsumer(orders, "x", {});
  });
});

describe("publishing from a handler", () => {
  const billing = defineConsumer(orders, "billing", { filter: "orders.placed", deadLetter });

  it("takes a known subject with its schema's input", () => {
    app().on(billing, async (_, { publish, schedule }) => {
      await publish("orders.placed", { orderId: "1", cents: "12" });
      await publish("images.resize", { url: "x" }, { id: "1" });
      await publish("audit.eu.seen", "x");
      await schedule("orders.reminder", { orderId: "1" }, { in: "24h", id: "r1" });
      await schedule("orders.reminder", { orderId: "1" }, { at: new Date() });
    });
  });

  it("refuses what would fail", () => {
    app().on(billing, async (_, { publish, schedule }) => {
      // @ts-expect-error an unknown subject
      await publish("orders.cancelled", { orderId: "1" });
      // @ts-expect-error captured, without a schema
      await publish("dead.x", {});
      // @ts-expect-error the schema's input is text
      await publish("orders.placed", { orderId: "1", cents: 12 });
      // @ts-expect-error a missing field
      await publish("images.resize", {});
      // @ts-expect-error both a delay and a time
      await schedule("orders.reminder", { orderId: "1" }, { in: "1s", at: new Date() });
      // @ts-expect-error neither
      await schedule("orders.reminder", { orderId: "1" }, {});
      // @ts-expect-error not a duration
      await schedule("orders.reminder", { orderId: "1" }, { in: "soon" });
    });
  });
});
