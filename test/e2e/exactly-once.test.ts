import { expect, it } from "vitest";
import { app } from "../../functions/app.ts";
import { startWorker } from "../../scripts/worker.ts";
import { startSystem } from "../support/system.ts";

// CHAOS=full: ten thousand. Within npm test: one.
const count = process.env.CHAOS === "full" ? 10_000 : 1_000;

/** Of every hundred orders one is malformed, five fail once, one fails for good. */
function orderOf(n: number) {
  const kind = n % 100;
  const card = kind === 1 ? "tok_declined" : kind >= 10 && kind < 15 ? "tok_busy" : "tok_fine";
  return { orderId: `order-${n}`, card, cents: kind === 0 ? "many" : n };
}

it(`settles ${count} messages exactly once each, as the server and a client that is not ours see it`, {
  timeout: 120_000,
}, async () => {
  await using system = await startSystem(app);
  await using worker = await startWorker({ bindings: { NATS_URL: system.server.url, SORTIE_PUBLISH_TOKEN: "t" } });

  // what crosses the wire as settlements of billing, by sequence
  const settled = new Map<number, string[]>();
  system.tcp.subscribe("$JS.ACK.ORDERS.billing.>", {
    callback: (_, { subject, data }) => {
      const sequence = Number(subject.split(".")[5]);
      settled.set(sequence, [...(settled.get(sequence) ?? []), new TextDecoder().decode(data).split(" ")[0] ?? ""]);
    },
  });
  await system.tcp.flush();

  const answers = new Map<number, number>();
  let next = 0;
  const publisher = async () => {
    for (let n = next++; n < count; n = next++) {
      const response = await fetch(new URL("publish/orders.placed", worker.url), {
        method: "POST",
        headers: { Authorization: "Bearer t", "Content-Type": "application/json", "Idempotency-Key": `order-${n}` },
        body: JSON.stringify(orderOf(n)),
      });
      answers.set(n, response.status);
      await response.arrayBuffer();
    }
  };
  let publishing = true;
  const published = Promise.all(Array.from({ length: 24 }, publisher)).then(() => {
    publishing = false;
  });
  // a producer that does not ask Sortie publishes as many that nothing can read
  const garbage = await Promise.all(
    Array.from({ length: count / 100 }, (_, n) =>
      system.publish("orders.placed", new TextEncoder().encode(`garbage ${n}`)),
    ),
  );

  const outcomes = new Set<string>();
  const caughtUp = async () => {
    const { num_pending, num_ack_pending } = await system.jsm.consumers.info("ORDERS", "billing");
    return num_pending + num_ack_pending === 0;
  };
  while (publishing || !(await caughtUp())) outcomes.add((await worker.fire("* * * * *")).outcome);
  await published;

  expect([...outcomes]).toEqual(["ok"]);
  const malformed = [...answers].filter(([, status]) => status === 422).map(([n]) => n);
  expect(malformed.toSorted((a, b) => a - b)).toEqual(Array.from({ length: count / 100 }, (_, n) => n * 100));
  expect([...answers.values()].filter((status) => status === 202)).toHaveLength(count - count / 100);

  const { subjects } = (await system.jsm.streams.info("ORDERS", { subjects_filter: "orders.placed" })).state;
  expect(subjects).toEqual({ "orders.placed": count });
  const reasons = new Map<number, string>();
  const letters = (await system.jsm.streams.info("DEAD")).state.messages;
  for (let seq = 1; seq <= letters; seq++) {
    const letter = await system.jsm.streams.getMessage("DEAD", { seq });
    const origin = Number(letter?.header.get("Sortie-Sequence"));
    const stored = await system.jsm.streams.getMessage("ORDERS", { seq: origin });
    expect(letter?.data).toEqual(stored?.data); // the payload untouched
    if (letter?.header.get("Sortie-Reason") === "non-retriable")
      expect(letter.json()).toMatchObject({ card: "tok_declined" });
    expect(reasons.has(origin)).toBe(false);
    reasons.set(origin, `${letter?.header.get("Sortie-Reason")}: ${letter?.header.get("Sortie-Error")}`);
  }
  expect(
    [...reasons].filter(([, reason]) => reason === "non-retriable: NonRetriableError: card declined"),
  ).toHaveLength(count / 100);
  const unreadable = [...reasons]
    .filter(([, reason]) => reason.startsWith("undecodable: "))
    .map(([sequence]) => sequence);
  expect(new Set(unreadable)).toEqual(new Set(garbage));
  expect(letters).toBe((2 * count) / 100);

  await expect.poll(() => settled.size, { timeout: 10_000 }).toBe(count);
  const wires = Map.groupBy(settled, ([sequence, wire]) =>
    reasons.has(sequence) ? `dead ${wire.join()}` : wire.join(),
  );
  expect(Object.fromEntries([...wires].map(([wire, messages]) => [wire, messages.length]))).toEqual({
    "+ACK": count - (7 * count) / 100,
    "-NAK,+ACK": (5 * count) / 100,
    "dead +TERM": (2 * count) / 100,
  });
});
