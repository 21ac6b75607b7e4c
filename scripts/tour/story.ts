import { randomUUID } from "node:crypto";
import { deadLetterHeaders } from "../../src/dead-letter/store.ts";
import type { LocalWorker } from "../worker.ts";
import type { Observer } from "./observer.ts";
import type { Screen } from "./screen.ts";

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
  const facts: Fact[] = [];
  const is = (claim: string, holds: boolean) => facts.push({ claim, holds });

  screen.section("What the functions do");
  const good = await place(`good-${run}`, "tok_fine");
  const again = await place(`good-${run}`, "tok_fine");
  const busy = await place(`busy-${run}`, "tok_busy");
  const declined = await place(`declined-${run}`, "tok_declined");
  const image = await post("images.resize", { url: `https://example.com/${run}.png`, width: 320 });
  const malformed = await post("orders.placed", { orderId: `malformed-${run}`, card: "tok_fine", cents: "many" });
  const garbage = await observer.publishRaw("images.resize", `not JSON ${run}`);
  screen.event("in", "published", `images.resize #${garbage}, not JSON, by another NATS client`);

  await charged(`good-${run}`);
  const scheduled = async () => (await observer.all("ORDERS", `sortie.schedule.ORDERS.reminder-good-${run}`)).at(0);
  await until(async () => (await scheduled()) !== undefined); // a handler's own log comes before what it publishes
  const due = Date.parse((await scheduled())?.header.get("Nats-Schedule").replace("@at ", "") ?? "");
  screen.event("clock", "scheduled", `the reminder of good-${run}, for ${clock(due)}`);
  await charged(`busy-${run}`);
  await Promise.all([
    screen.seen(({ event, sequence }) => event === "dead-lettered" && sequence === declined.sequence),
    screen.seen(
      ({ event, sequence, subject }) =>
        event === "dead-lettered" && sequence === garbage && subject === "images.resize",
    ),
    screen.seen(({ event, url }) => event === "resized" && `${url}`.includes(run)),
    screen.seen(({ event, orderId }) => event === "reminded" && orderId === `good-${run}`),
  ]);
  const released = (await observer.all("ORDERS", "orders.reminder")).filter(
    (reminder) => reminder.json<{ orderId: string }>().orderId === `good-${run}`,
  );
  const late = (released[0]?.time.getTime() ?? NaN) - due;
  screen.event("clock", "released", `the reminder of good-${run}, ${late} ms after it was due`);

  screen.section("What the server says of it");
  is(
    "every publish that was accepted is stored, the repeated one once",
    again.duplicate &&
      again.sequence === good.sequence &&
      (await placed(good)) &&
      (await placed(busy)) &&
      (await placed(declined)),
  );
  is(
    "the malformed order was refused with the failing field (422), and stored nowhere",
    malformed.status === 422 && malformed.sequence === undefined,
  );
  is(
    "every order is settled",
    await until(async () => (await observer.ackFloor("ORDERS", "billing")) >= (declined.sequence ?? Infinity)),
  );
  is("the busy card's order was handled on its second attempt", (await charged(`busy-${run}`)).attempt === 2);
  is(
    "the work queue has let go of both images",
    await until(
      async () =>
        !(await observer.stored("IMAGES", image.sequence ?? 0)) && !(await observer.stored("IMAGES", garbage)),
    ),
  );
  is(
    "the declined order is in the dead letters: non-retriable",
    await isDead("dead.orders.billing", declined.sequence, "non-retriable"),
  );
  is(
    "the garbage is in the dead letters, byte for byte: undecodable",
    await isDead("dead.images.resizer", garbage, "undecodable", `not JSON ${run}`),
  );
  is("the reminder was released once, not early, within a second", released.length === 1 && late >= 0 && late < 1_000);
  for (const { claim, holds } of facts) screen.check(claim, holds);
  return facts;

  function place(orderId: string, card: string) {
    return post("orders.placed", { orderId, card, cents: 1_999, remindAfterSeconds: 3 }, orderId);
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

  function charged(orderId: string) {
    return screen.seen((entry) => entry.event === "charged" && entry.orderId === orderId);
  }

  async function placed({ sequence }: { sequence: number | undefined }): Promise<boolean> {
    return (await observer.stored("ORDERS", sequence ?? 0))?.subject === "orders.placed";
  }

  async function isDead(
    subject: string,
    sequence: number | undefined,
    reason: string,
    payload?: string,
  ): Promise<boolean> {
    const letters = (await observer.all("DEAD", subject)).filter(
      ({ header }) =>
        header.get(deadLetterHeaders.sequence) === `${sequence}` && header.get(deadLetterHeaders.reason) === reason,
    );
    return letters.length === 1 && (payload === undefined || letters[0]?.string() === payload);
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
