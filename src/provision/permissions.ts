import type { ConsumerDefinition } from "../define/consumer.ts";
import {
  attemptsStream,
  attemptsSubject,
  breakerSubject,
  breakersStream,
  companionOf,
  companionsOf,
  keySubject,
  keysStream,
  ownStreams,
  parkedStream,
  parkedSubject,
  parks,
  placesStream,
  placesSubject,
  rateSubject,
  ratesStream,
  schedulesStream,
} from "../define/own.ts";
import type { StreamDefinition } from "../define/stream.ts";
import { covers } from "../define/subject.ts";
import { inboxPrefixOf } from "../nats/inbox.ts";
import { isAtLeast } from "../nats/jetstream.ts";
import { scheduleSubjects } from "../schedule/native.ts";
import { allNotes, doneSubjectOf, scheduleSubject } from "../schedule/pending.ts";
import type { Definitions } from "./apply.ts";
import { type OwnedSchedules, registryOf } from "./apply-schedules.ts";

/** A function of an app, or `sortie apply`; `worker` is all of the functions in one, as on Cloudflare Workers. */
type Role = "http" | "pull" | "release" | "worker" | "apply";

/** The least that the login of a function needs. */
export interface Login {
  readonly role: Role;
  /** The login's name, by which it has an inbox of its own. */
  readonly user: string;
  readonly publish: readonly Permission[];
  readonly subscribe: readonly Permission[];
}

/** A subject, or a pattern of subjects, and what it is for. */
export interface Permission {
  readonly subject: string;
  readonly why: string;
}

export interface PermissionsOptions {
  /** The server's, as it says: "2.10.27". @default one that can do all */
  readonly version?: string | undefined;
  /** Whether the functions are one, with one login. @default false */
  readonly together?: boolean | undefined;
}

const api = {
  read: (stream: string) => `$JS.API.STREAM.MSG.GET.${stream}`,
  remove: (stream: string) => `$JS.API.STREAM.MSG.DELETE.${stream}`,
  look: (stream: string) => `$JS.API.STREAM.INFO.${stream}`,
  consumer: (stream: string, name: string) => `$JS.API.CONSUMER.INFO.${stream}.${name}`,
};

/**
 * Works out the least permissions of the login of each function, from what the app defines and the server can do. A function
 * that has nothing to do has no login.
 */
export function planPermissions(
  definitions: Definitions,
  { version = "99", together = false }: PermissionsOptions = {},
): Login[] {
  const { streams, consumers, fanOut, schedules: owned = [] } = definitions;
  const serverReleases = isAtLeast(version, "2.12");
  const serverPauses = isAtLeast(version, "2.11");
  const taking = streams.filter(({ schedules }) => schedules);
  const all = [...streams, ...ownStreams(consumers, { fanOut, scheduled: taking })];
  const isNative = ({ schedules }: StreamDefinition) => schedules === "server" && serverReleases;
  const [owner, another] = owned.map((one) => one.owner);
  const app = owner !== undefined && another === undefined ? `${owner.replace(/[^\w-]+/g, "-")}-` : "";

  const logins = together
    ? [login("worker", [...http(), ...pull(), ...release()], [...hears(), ...news()]), login("apply", apply())]
    : [
        login("http", http()),
        login("pull", pull(), hears()),
        login("release", release(), news()),
        login("apply", apply()),
      ];
  return logins.filter(({ publish }) => publish.length > 0); // to a server an empty list is none: all would be allowed

  function login(role: Role, publish: readonly Permission[], subscribe: readonly Permission[] = []): Login {
    const user = `${app}${role}`;
    const inbox = needed("the server's answers, to this login alone", `${inboxPrefixOf(user)}.>`);
    return { role, user, publish: least(publish), subscribe: least([...inbox, ...subscribe]) };
  }

  function http(): Permission[] {
    const written = streams.filter(hasSchemas).map(({ name }) => name);
    return [
      ...publishing(),
      ...needed(
        "how streams and consumers are, for /health",
        ...all.map(({ name }) => api.look(name)),
        ...consumers.map(({ stream, name }) => api.consumer(stream.name, name)),
      ),
      ...needed("whether an Idempotency-Key was used for something else", ...written.map(api.read)),
      ...scheduling(),
      ...needed(
        "listing schedules, and firing them",
        ...taking.flatMap(({ name }) => [api.look(name), doneSubjectOf(name)]),
        ...(taking.length > 0 ? [api.look(schedulesStream)] : []),
      ),
    ];
  }

  function pull(): Permission[] {
    const keeping = (wanted: boolean, why: string, stream: string, ...more: string[]) =>
      wanted ? needed(why, api.read(stream), ...more) : [];
    return [
      ...consumers.flatMap(consuming),
      ...keeping(consumers.length > 0, "attempts", attemptsStream, api.remove(attemptsStream)),
      ...keeping(consumers.some(hasKeys), "idempotency", keysStream, api.remove(keysStream)),
      ...keeping(
        consumers.some(({ breaker }) => breaker),
        "circuit breakers",
        breakersStream,
      ),
      ...keeping(
        consumers.some(({ rateLimit }) => rateLimit),
        "rate limits",
        ratesStream,
      ),
      ...keeping(fanOut !== undefined, "going on in other invocations", placesStream, placesSubject),
      ...publishing(),
      ...scheduling(),
    ];
  }

  function consuming(consumer: ConsumerDefinition): Permission[] {
    const { stream, name, deadLetter, breaker, rateLimit, managed } = consumer;
    const sources = [
      { stream: stream.name, name },
      ...companionsOf(consumer).map((one) => ({ stream: one.stream, name: companionOf(consumer) })),
    ];
    const rate = rateLimit && `${rateSubject(consumer)}${rateLimit.key ? ".*" : ""}`;
    const whole = `${stream.name}/${name}`;
    return [
      ...sources.flatMap((source) =>
        needed(
          `pulling and settling ${whole}`,
          `$JS.API.CONSUMER.MSG.NEXT.${source.stream}.${source.name}`,
          api.consumer(source.stream, source.name),
          `$JS.ACK.${source.stream}.${source.name}.>`,
        ),
      ),
      ...needed(`what fails of ${whole}`, deadLetter, attemptsSubject(stream.name, name, "*", "*")),
      ...(parks(consumer) ? needed(`far retries of ${whole}`, parkedSubject(stream.name, name, "*", "*")) : []),
      ...(managed ? [] : needed(`what the server gives up on of ${whole}`, api.read(stream.name))),
      ...(!managed && stream.retention === "workqueue"
        ? needed(`what the server gives up on of ${whole}`, api.remove(stream.name))
        : []),
      ...(hasKeys(consumer) ? needed(`idempotency of ${whole}`, keySubject(consumer, "*")) : []),
      ...(rate ? needed(`the rate limit of ${whole}`, rate) : []),
      ...(breaker ? needed(`the circuit breaker of ${whole}`, breakerSubject(consumer)) : []),
      ...(breaker && serverPauses
        ? needed(`the circuit breaker of ${whole}`, `$JS.API.CONSUMER.PAUSE.${stream.name}.${name}`)
        : []),
    ];
  }

  /** What invocations hear besides. */
  function hears(): Permission[] {
    const broken = consumers.filter(({ breaker }) => breaker).map(breakerSubject);
    return needed("that another invocation has opened a circuit breaker", ...broken);
  }

  function release(): Permission[] {
    return [
      ...taking.flatMap((stream) => {
        const { name, retention } = stream;
        const own = [scheduleSubject(name, "*"), allNotes(name), doneSubjectOf(name)];
        // what was released before is handled when a work queue has let go of it, or its consumers have
        const handled = retention === "workqueue" ? [] : [`$JS.API.CONSUMER.LIST.${name}`];
        return [
          ...needed(`releasing into ${name}`, ...Object.keys(stream.schemas)),
          ...needed(`what is due for ${name}`, ...own, api.look(name), api.read(name), ...handled),
        ];
      }),
      ...(taking.length > 0
        ? needed(
            "the schedules that wait",
            api.look(schedulesStream),
            api.read(schedulesStream),
            api.remove(schedulesStream),
            `$JS.API.STREAM.PURGE.${schedulesStream}`,
            api.read(parkedStream),
          )
        : []),
    ];
  }

  /** What a release hears besides: that something was scheduled, and is due soon. */
  function news(): Permission[] {
    return needed("what is scheduled meanwhile", ...taking.map(({ name }) => allNotes(name)));
  }

  function publishing(): Permission[] {
    const subjects = streams.flatMap(({ schemas }) => Object.keys(schemas));
    return subjects.length === 0
      ? []
      : [
          ...needed("publishing", ...subjects),
          ...needed("whether a stream is missing, or only without a leader", "$JS.API.STREAM.NAMES"),
        ];
  }

  /** Scheduling, and cancelling. */
  function scheduling(): Permission[] {
    return taking.flatMap((stream) => {
      const { name } = stream;
      const native = isNative(stream) ? [scheduleSubjects(name), api.look(name), api.remove(name)] : [];
      return needed(
        `scheduling into ${name}, and cancelling`,
        scheduleSubject(name, "*"),
        allNotes(name),
        api.read(schedulesStream),
        ...(serverReleases ? [api.read(name)] : []),
        ...native,
      );
    });
  }

  function apply(): Permission[] {
    const isCaptured = (subject: string) => streams.some((one) => one.subjects.some((each) => covers(each, subject)));
    const elsewhere = consumers.some(({ deadLetter }) => !isCaptured(deadLetter));
    return [
      ...all.flatMap(({ name }) =>
        needed(`stream ${name}`, ...["INFO", "CREATE", "UPDATE"].map((what) => `$JS.API.STREAM.${what}.${name}`)),
      ),
      ...consumers.flatMap((consumer) => [
        ...provisioning(consumer.stream.name, consumer, consumer.managed),
        ...companionsOf(consumer).flatMap(({ stream, filter }) =>
          provisioning(stream, { name: companionOf(consumer), filters: [filter] }),
        ),
      ]),
      ...(streams.some(({ schedules }) => !schedules)
        ? needed(
            "whether schedules wait for a stream that takes none",
            api.look(schedulesStream),
            api.read(schedulesStream),
          )
        : []),
      ...(elsewhere ? needed("whether a stream captures dead letters", "$JS.API.STREAM.NAMES") : []),
      ...owned.flatMap(definedBy),
    ];
  }

  /** What an app defines of schedules is made, and what it has defined before, in any of its streams, is cancelled: if any. */
  function definedBy({ owner, schedules }: OwnedSchedules): Permission[] {
    return needed(
      `the schedules of ${owner}`,
      registryOf(owner),
      api.read(schedulesStream),
      ...taking.flatMap((stream) => {
        const { name } = stream;
        const isUsed = schedules.some((one) => one.stream.name === name);
        return [
          scheduleSubject(name, "*"),
          ...(isUsed || !isAtLeast(version, "2.11") ? [allNotes(name)] : []),
          ...(serverReleases ? [api.read(name)] : []),
          ...(isUsed && isNative(stream) ? [api.remove(name)] : []),
        ];
      }),
    );
  }

  function provisioning(
    stream: string,
    { name, filters }: Pick<ConsumerDefinition, "name" | "filters">,
    managed = true,
  ): Permission[] {
    const [filter, ...others] = filters;
    // as the client asks for it
    const create =
      others.length > 0
        ? `DURABLE.CREATE.${stream}.${name}`
        : `CREATE.${stream}.${name}${filter === ">" ? "" : `.${filter}`}`;
    return needed(
      `consumer ${stream}/${name}`,
      api.consumer(stream, name),
      ...(managed ? [`$JS.API.CONSUMER.${create}`] : []),
    );
  }
}

function needed(why: string, ...subjects: readonly string[]): Permission[] {
  return subjects.map((subject) => ({ subject, why }));
}

/** Each once, and none that another one covers. */
function least(all: readonly Permission[]): Permission[] {
  return all.filter(({ subject }, at) =>
    all.every((other, n) => n === at || !covers(other.subject, subject) || (other.subject === subject && n > at)),
  );
}

function hasSchemas({ schemas }: StreamDefinition): boolean {
  return Object.keys(schemas).length > 0;
}

function hasKeys({ idempotency }: ConsumerDefinition): boolean {
  return idempotency !== undefined;
}
