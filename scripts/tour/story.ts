import { randomUUID } from "node:crypto";
import type { StoredMsg } from "@nats-io/jetstream";
import { deadLetterHeaders } from "../../src/dead-letter/story.ts";
import type { LocalWorker } from "../worker.ts";
import type { Observer } from "./observer.ts";
import type { Screen } from "./screen.ts";

const reminderMs = 3_000;

/** What the tour showed, and whether the server says the same. */
export interface Fact {
  readonly claim: string;
  readonly holds: boolean;
}

interface Stage {
  readonly worker: LocalWorker;
  readonly token: string;
  readonly observer: Observer;
  readonly screen: Screen;
}

/** Publishes one message of each fate, waits until each has met it, and asks the server whether it is so. */
export async function playTour({ worker, token, observer, screen }: Stage): Promise<Fact[]> {
  const run = randomUUID().slice(0, 4); // a server that stays, at NATS_URL, has seen other tours
  const started = Date.now();
  const facts: Fact[] = [];
  const is = (claim: string, holds: boolean) => facts.push({ claim, holds });

  screen.section("What the functions do");
  const good = await place(`good-${run}`, "tok_fine");
  const again = await place(`good-${run}`, "tok_fine");
  const busy = await place(`busy-${run}`, "tok_busy");
  const declined = await place(`declined-${run}`, "tok_declined");
  const paid = await place(`paid-${run}`, "tok_fine", 60_000); // cancelled long before
  const image = await post("images.resize", { url: `https://example.com/${run}.png`, width: 320 });
  const malformed = await post("orders.placed", { orderId: `malformed-${run}`, card: "tok_fine", cents: "many" });
  const garbage = await observer.publishRaw("images.resize", `not JSON ${run}`);
  screen.event("in", "published", `images.resize #${garbage}, not JSON, by another NATS client`);

  const recurring = await ask("POST", "schedules", {
    id: `nudge-${run}`,
    subject: "orders.reminder",
    data: { orderId: `nudge-${run}` },
    every: "1s",
    until: new Date(Date.now() + 3_900).toISOString(),
  });
  screen.event("clock", "scheduled", `nudge-${run}, every second, three times`);

  await charged(`paid-${run}`);
  const reminderOfPaid = `schedules/reminder-paid-${run}`;
  await until(async () => (await ask("GET", reminderOfPaid)).schedule?.state === "waiting");
  const cancelled = await ask("DELETE", reminderOfPaid);
  screen.event("clock", `${cancelled.result}`, `the reminder of paid-${run}`);

  const goodCharged = await charged(`good-${run}`);
  const scheduled = async () =>
    (await observer.all("ORDERS", `sortie.schedule.ORDERS.reminder-good-${run}`)).at(0)?.header.get("Nats-Schedule");
  await until(async () => (await scheduled()) !== undefined); // a handler's own log comes before what it publishes
  const due = Date.parse((await scheduled())?.replace("@at ", "") ?? "");
  screen.event("clock", "scheduled", `the reminder of good-${run}, for ${clock(due)}`);
  const retried = await screen.seen(({ event, sequence }) => event === "retried" && sequence === busy.sequence);
  const busyCharged = await charged(`busy-${run}`);
  await Promise.all([
    screen.seen(({ event, sequence }) => event === "dead-lettered" && sequence === declined.sequence),
    screen.seen(
      ({ event, sequence, subject }) =>
        event === "dead-lettered" && sequence === garbage && subject === "images.resize",
    ),
    screen.seen(({ event, url }) => event === "resized" && `${url}`.includes(run)),
    screen.seen(({ event, orderId }) => event === "reminded" && orderId === `good-${run}`),
  ]);
  const remindersOf = async (schedule: string) =>
    (await ofThisRun("ORDERS", "orders.reminder")).filter(({ header }) => header.get("Sortie-Schedule") === schedule);
  const reminders = () => remindersOf("");
  const [reminder] = await reminders();
  const late = (reminder?.time.getTime() ?? NaN) - due;
  screen.event("clock", "released", `the reminder of good-${run}, ${late} ms after it was due`);
  // the busy order's reminder ends the run; what came twice has come by then
  await screen.seen(({ event, orderId }) => event === "reminded" && orderId === `busy-${run}`);
  const nudge = `nudge-${run}`;
  await until(async () => (await ask("GET", `schedules/${nudge}`)).schedule?.state === "released");
  screen.event("clock", "released", `${nudge} for the last time`);

  screen.section("What the server says of it");
  const orders = (await ofThisRun("ORDERS", "orders.placed")).map(
    (message) => `${message.seq} ${message.json<{ orderId: string }>().orderId}`,
  );
  const settled = async (stream: string, consumer: string, sequence: number | undefined) =>
    until(async () => (await observer.ackFloor(stream, consumer)) >= (sequence ?? Infinity));
  const lastReminder = (await reminders()).at(-1)?.seq;
  is(
    "every publish that was accepted is stored, the repeated one once, the malformed one (422) nowhere",
    again.duplicate &&
      again.sequence === good.sequence &&
      malformed.status === 422 &&
      orders.join() ===
        `${good.sequence} good-${run},${busy.sequence} busy-${run},${declined.sequence} declined-${run},${paid.sequence} paid-${run}`,
  );
  is("every order is settled", await settled("ORDERS", "billing", paid.sequence));
  is(
    "the busy card's order was handled on its second attempt, two seconds later",
    busyCharged.attempt === 2 && busyCharged.at - retried.at > 1_900,
  );
  is(
    "the work queue has let go of both images",
    (await settled("IMAGES", "resizer", garbage)) &&
      !(await observer.stored("IMAGES", image.sequence ?? 0)) &&
      !(await observer.stored("IMAGES", garbage)),
  );
  const letters = await lettersOfThisRun();
  is(
    "the declined order is in the dead letters: non-retriable, card declined",
    isLetter(letters[0], "non-retriable", "NonRetriableError: card declined", `"orderId":"declined-${run}"`),
  );
  is(
    "the garbage is in the dead letters, byte for byte: undecodable",
    isLetter(letters[1], "undecodable", "not JSON", `not JSON ${run}`),
  );
  is(
    "nothing else is in the dead letters, and no invocation failed",
    letters.length === 2 && screen.failures.length === 0,
  );
  is(
    "the reminder was released once, three seconds after the order was handled, not early, within a second",
    (await reminders()).map((message) => message.json<{ orderId: string }>().orderId).join() ===
      `good-${run},busy-${run}` &&
      due > goodCharged.at + reminderMs - 900 && // the log comes a little after the handler
      due <= goodCharged.at + reminderMs &&
      late >= 0 &&
      late < 1_000 &&
      (await settled("ORDERS", "reminders", lastReminder)),
  );
  const nudges = await remindersOf(nudge);
  const planned = nudges.map(({ header }) => Number(header.get("Sortie-Scheduled-For")));
  is(
    "the schedule that comes again was released three times, a second apart, none early",
    recurring.status === 201 &&
      planned.length === 3 &&
      planned.every((time, at) => time === (planned[0] ?? 0) + at * 1_000 && (nudges[at]?.time.getTime() ?? 0) >= time),
  );
  is(
    "the reminder that was cancelled in time was not released",
    cancelled.result === "cancelled" &&
      !(await reminders()).some((message) => message.string().includes(`paid-${run}`)),
  );
  for (const { claim, holds } of facts) screen.check(claim, holds);
  return facts;

  async function ofThisRun(stream: string, subject: string) {
    return (await observer.all(stream, subject)).filter((message) => message.string().includes(`-${run}"`));
  }

  /** In the order of their origins: an order, then an image. */
  async function lettersOfThisRun() {
    const found = await Promise.all(
      ["dead.orders.billing", "dead.orders.reminders", "dead.images.resizer"].map((subject) =>
        observer.all("DEAD", subject),
      ),
    );
    return found.flat().filter(({ time }) => time.getTime() >= started);
  }

  function isLetter(letter: StoredMsg | undefined, reason: string, error: string, payload: string): boolean {
    return (
      letter?.header.get(deadLetterHeaders.reason) === reason &&
      letter.header.get(deadLetterHeaders.error).includes(error) &&
      letter.string().includes(payload)
    );
  }

  function place(orderId: string, card: string, remindMs = reminderMs) {
    return post("orders.placed", { orderId, card, cents: 1_999, remindAfterSeconds: remindMs / 1_000 }, orderId);
  }

  async function post(subject: string, payload: object, key?: string) {
    const response = await fetch(new URL(`publish/${subject}`, worker.url), {
      method: "POST",
      headers: {
        Authorization: `Bearer ${token}`,
        "Content-Type": "application/json",
        ...(key && { "Idempotency-Key": key }),
      },
      body: JSON.stringify(payload),
    });
    const answer = (await response.json()) as { sequence?: number; duplicate?: boolean; detail?: string };
    const { sequence, duplicate = false, detail } = answer;
    if (response.status === 202) {
      screen.event(
        "in",
        "published",
        `${subject} #${sequence}${key ? ` ${key}` : ""}${duplicate ? ": the same again, stored once" : ""}`,
      );
    } else {
      screen.event("dead", `refused, ${response.status}`, `${detail}`);
    }
    return { status: response.status, sequence, duplicate };
  }

  /** Of the schedules' part of the HTTP surface. */
  async function ask(method: "GET" | "POST" | "DELETE", path: string, body?: object) {
    const response = await fetch(new URL(path, worker.url), {
      method,
      headers: { Authorization: `Bearer ${token}`, "Content-Type": "application/json" },
      ...(body && { body: JSON.stringify(body) }),
    });
    const answer = (await response.json()) as { schedule?: { state?: string }; result?: string };
    return { status: response.status, ...answer };
  }

  function charged(orderId: string) {
    return screen.seen((entry) => entry.event === "charged" && entry.orderId === orderId);
  }
}

/** Gives the server's own bookkeeping five seconds to catch up. */
async function until(holds: () => Promise<boolean>): Promise<boolean> {
  for (let waited = 0; waited < 5_000; waited += 100) {
    if (await holds()) return true;
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  return holds();
}

function clock(ms: number): string {
  return Number.isNaN(ms) ? "never" : new Date(ms).toISOString().slice(11, 23);
}
