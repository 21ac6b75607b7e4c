import { schedulesStream } from "../define/own.ts";
import { defineStream, type StreamDefinition } from "../define/stream.ts";
import { SortieError } from "../errors.ts";
import type { Connection } from "../nats/connection.ts";
import type { StoredMessage } from "../nats/stored-message.ts";
import type { SubjectsPage } from "../nats/stream-info.ts";
import { pause } from "../nats/within.ts";
import { preparePayload } from "../publish/outgoing.ts";
import { isOutrun, publish } from "../publish/publish.ts";
import type { ScheduleDefinition } from "../schedule/definition.ts";
import { serverTime } from "../schedule/native.ts";
import {
  expectedLast,
  namelessNotes,
  type Pending,
  pendingHeaders,
  pendingOf,
  rewritten,
  scheduleSubject,
} from "../schedule/pending.ts";
import { nextAfter } from "../schedule/recurrence.ts";
import { type RecurringOptions, recurringOf } from "../schedule/recurring.ts";
import { patienceMs } from "../schedule/releaser.ts";
import { scheduled } from "../schedule/schedule.ts";
import { createSchedules } from "../schedule/schedules.ts";
import { schedulesInfo, storedSchedule, subjectsIn } from "../schedule/stored-schedule.ts";
import { timeOf, tokenOf } from "../schedule/when.ts";

/** The schedules that an app defines. */
export interface OwnedSchedules {
  /** The app's name: what of it is not among `schedules` any more is cancelled. */
  readonly owner: string;
  readonly schedules: readonly ScheduleDefinition[];
}

type Action = "create" | "update" | "none" | "remove";

/** Where it is kept which schedules are an app's. */
export function registryOf(owner: string): string {
  return `sortie.schedules.defined.${tokenOf(owner)}`;
}

/** What became of one definition. */
type Told = (action: Action, name: string, changes?: readonly string[]) => void;

const stepMs = 5_000;

/** How long one that is being released is waited for. */
const longestMs = 20_000;

/** How many are counted of what nothing would release. */
const enough = 1_000;

/** Throws `provision-refused` where schedules wait for a stream that takes none any more: nobody would release them, or know of them. */
export async function assertNoneWait(connection: Connection, stream: string): Promise<void> {
  const count = await countWaiting(connection, stream).catch((error: unknown) => {
    if (error instanceof SortieError && error.code === "stream-missing") return 0; // no stream takes any
    throw error;
  });
  if (count === 0) return;
  throw new SortieError(
    "provision-refused",
    `Stream "${stream}" takes no schedules in its definition, and ${count < enough ? count : `${enough} or more`} wait for it: nothing would release them. Keep its \`schedules\`, or cancel them while it has that: npx sortie schedules <the module with your app>`,
  );
}

/** At least that many, where it is `enough`. */
async function countWaiting(connection: Connection, stream: string): Promise<number> {
  let count = 0;
  const ask = (page: SubjectsPage) =>
    schedulesInfo(connection, schedulesStream, stepMs, "looking for what waits", page);
  const isThere = async (subject: string) => {
    const which = { last_by_subj: subject };
    const stored = await storedSchedule(connection, schedulesStream, which, stepMs, "reading a schedule");
    return stored !== undefined && isWaiting(pendingOf(stored));
  };
  for (const pattern of [scheduleSubject(stream, "*"), namelessNotes(stream)]) {
    for await (const { subjects } of subjectsIn(pattern, ask)) {
      for (let at = 0; at < subjects.length && count < enough; at += 100) {
        const found = await Promise.all(subjects.slice(at, at + 100).map(isThere));
        count += found.filter(Boolean).length;
      }
    }
  }
  return count;
}

function isWaiting({ state }: Pending): boolean {
  return state === undefined || state === "paused";
}

/** Makes an app's schedules on the server as they are defined. */
export async function applySchedules(connection: Connection, { owner, schedules }: OwnedSchedules, told: Told) {
  const registry = registryOf(owner);
  const keyOf = (stream: string, id: string) => `${stream}/${id}`;
  const which = { last_by_subj: registry };
  const asked = storedSchedule(connection, schedulesStream, which, stepMs, "reading what is defined");
  const stored = await asked.catch((error: unknown) => {
    const isMissing = error instanceof SortieError && error.code === "stream-missing";
    if (isMissing && schedules.length === 0) return undefined; // no stream takes any
    throw error;
  });
  const before = stored ? (JSON.parse(new TextDecoder().decode(stored.data)) as { stream: string; id: string }[]) : [];
  const wanted = schedules.map(({ stream, id }) => ({ stream: stream.name, id }));
  const gone = before.filter(
    (one) => !wanted.some(({ stream, id }) => keyOf(stream, id) === keyOf(one.stream, one.id)),
  );
  if (before.length + wanted.length === 0) return;
  const register = async (what: readonly object[], expected: number) => {
    const payload = new TextEncoder().encode(JSON.stringify(what));
    const headers = [[expectedLast, `${expected}`]] as const;
    try {
      return (await publish(connection, { subject: registry, payload, headers }, stepMs)).sequence;
    } catch (error) {
      if (!isOutrun(error)) throw error;
      throw new SortieError(
        "provision-refused",
        `The schedules of app "${owner}" are being applied by somebody else at the same time: apply again`,
        { cause: error },
      );
    }
  };
  // known before it is made, for what is made and not known would never be removed; and each time, so that of two who
  // apply at once one is told
  const revision = await register([...gone, ...wanted], stored?.sequence ?? 0);
  for (const definition of schedules) {
    const name = keyOf(definition.stream.name, definition.id);
    told(
      ...(await untilDone(name, () => applyOne(connection, owner, definition)).then(
        ([action, changes]) => [action, name, changes] as const,
      )),
    );
  }
  for (const { stream, id } of gone) {
    const left = await recordOf(connection, stream, id);
    if (left && pendingOf(left).owner !== owner) continue; // somebody else's by now, or all the time
    const among: StreamDefinition = defineStream(stream, { captures: [stream], schedules: "function" }); // of whatever app
    await createSchedules(connection, [among], { ms: longestMs }).cancel(id);
    told("remove", keyOf(stream, id));
  }
  await register(wanted, revision);
}

function recordOf(connection: Connection, stream: string, id: string): Promise<StoredMessage | undefined> {
  const place = { last_by_subj: scheduleSubject(stream, tokenOf(id)) };
  return storedSchedule(connection, schedulesStream, place, stepMs, "reading a schedule");
}

/** Again where somebody else has written meanwhile. */
async function untilDone<T>(name: string, once: () => Promise<T | undefined>): Promise<T> {
  for (const giveUpAt = Date.now() + longestMs; Date.now() < giveUpAt; ) {
    try {
      const done = await once();
      if (done) return done;
    } catch (error) {
      if (!isOutrun(error)) throw error;
    }
    await pause(200, "waiting for a schedule that is being released");
  }
  throw new SortieError("timed-out", `Schedule ${name} was being released for ${longestMs / 1_000} s: apply again`);
}

async function applyOne(
  connection: Connection,
  owner: string,
  { stream, id, subject, payload, recurring: options }: ScheduleDefinition,
): Promise<[Action, string[]] | undefined> {
  const what = `Schedule "${id}" of stream "${stream.name}"`;
  const outgoing = await preparePayload([stream], subject, payload);
  const [stored, now] = await Promise.all([
    recordOf(connection, stream.name, id),
    serverTime(connection, schedulesStream, stepMs, Date.now()),
  ]);
  const pending = stored && pendingOf(stored);
  const waits = pending && isWaiting(pending) ? pending : undefined;
  const hasEnded = comesNoMore(options, now, what);
  if (hasEnded && !waits) return ["none", []];
  const isOnServer =
    pending?.state === "on-server" &&
    (await createSchedules(connection, [stream], { ms: stepMs }).get(id))?.state === "waiting";
  if (isOnServer || (waits && waits.owner !== owner)) {
    const whose = waits?.owner === undefined ? "was not made by a definition" : `belongs to app "${waits.owner}"`;
    throw new SortieError(
      "provision-refused",
      `${what} is there already and ${whose}: give this one another id, or cancel that one first`,
    );
  }
  if (!stored || !waits) {
    await scheduled(connection, outgoing, stream, { ...options, id, owner }, now).store(stepMs);
    return ["create", []];
  }
  const changes = changesOf(stored, waits, outgoing, options, what);
  if (changes.length === 0) return ["none", []];
  const { releasing } = waits;
  const claimedAt = Date.parse(stored.time);
  if (releasing && now < claimedAt + patienceMs) return undefined; // whoever has claimed it may write what comes next
  const { until, ...endless } = options;
  const end = until === undefined ? undefined : timeOf(until, "until", what).getTime();
  const isOver = changes.includes("times") ? hasEnded : end !== undefined && end < waits.planned;
  if (isOver && changes.some((change) => change === "times" || change === "until")) {
    await createSchedules(connection, [stream], { ms: longestMs }).cancel(id);
    return ["remove", ["until has passed"]];
  }
  const isSameTime = !changes.includes("times");
  if (isSameTime || releasing) {
    // its next time stays as it is: a message that changes with each deploy comes all the same, and so does a time that
    // was being released by who has died, since when the next one to release it has to know
    const wanted = recurringOf(endless as RecurringOptions, now, what);
    const { catchUp, overlap, jitterMs } = wanted;
    const recurring = isSameTime
      ? { ...waits.recurring, catchUp, overlap, jitterMs, until: end }
      : { ...wanted, until: end };
    const [first, after, since = claimedAt] = releasing ?? [];
    const changed = rewritten(stored, {
      [pendingHeaders.target]: subject,
      [pendingHeaders.recurring]: JSON.stringify(recurring),
      ...(releasing && { [pendingHeaders.releasing]: `${first} ${after} ${since}` }),
    });
    await publish(connection, { ...changed, payload }, stepMs);
    return ["update", changes];
  }
  const isPaused = waits.state === "paused"; // which is for whoever paused it to end
  await scheduled(connection, outgoing, stream, { ...options, id, owner, isPaused }, now).store(stepMs);
  return ["update", changes];
}

/** Whether its end has come, or comes before its next time. */
function comesNoMore({ until, ...endless }: RecurringOptions, now: number, what: string): boolean {
  if (until === undefined) return false;
  const end = timeOf(until, "until", what).getTime();
  return end <= now || end < (nextAfter(recurringOf(endless as RecurringOptions, now, what), now) ?? Infinity);
}

function changesOf(
  stored: StoredMessage,
  { target, recurring }: Pending,
  outgoing: { subject: string; payload: Uint8Array },
  options: RecurringOptions,
  what: string,
): string[] {
  const { until, ...endless } = options;
  const wanted = recurringOf(endless as RecurringOptions, 0, what);
  const end = until === undefined ? undefined : timeOf(until, "until", what).getTime();
  const times = (one: object | undefined) => {
    const { everyMs, cron, timeZone } = (one ?? {}) as { everyMs?: number; cron?: string; timeZone?: string };
    return JSON.stringify([everyMs, cron, timeZone]);
  };
  const rest = (one: Pick<typeof wanted, "catchUp" | "overlap" | "jitterMs"> | undefined) =>
    JSON.stringify([one?.catchUp, one?.overlap, one?.jitterMs]);
  return [
    ...(times(recurring) === times(wanted) ? [] : ["times"]),
    ...(recurring?.until === end ? [] : ["until"]),
    ...(rest(recurring) === rest(wanted) ? [] : ["catchUp, overlap or jitter"]),
    ...(target === outgoing.subject ? [] : [`subject: ${target} → ${outgoing.subject}`]),
    ...(`${stored.data}` === `${outgoing.payload}` ? [] : ["data"]),
  ];
}
