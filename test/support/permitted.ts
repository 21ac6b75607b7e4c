import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { vi } from "vitest";
import { show } from "../../src/cli/permissions.ts";
import { covers } from "../../src/define/subject.ts";
import { type Connection, connect } from "../../src/nats/connection.ts";
import type { Definitions } from "../../src/provision/apply.ts";
import { type Login, planPermissions } from "../../src/provision/permissions.ts";
import { type NatsServer, startNatsServer } from "../../src/testing/nats-server.ts";
import { programOf, type ServerVersion } from "./servers.ts";
import { type Observer, observe } from "./system.ts";

/** A function of an app, or apply. */
export type Role = Login["role"];

/** A nats-server with the logins that `sortie permissions` prints; whoever gives none may do all. */
export interface Permitted extends Observer {
  readonly server: NatsServer;
  readonly definitions: Definitions;
  /** Connects with a function's login, or that of another user. */
  as(who: Role | "deaf"): (ms: number) => Promise<Connection>;
  /** The address with a function's login in it, as `NATS_URL` takes it. */
  urlOf(who: Role | "deaf"): string;
  admin(): Promise<Connection>;
  /** What the server has refused so far, by its log. */
  refused(): Promise<string[]>;
  /** The permissions that no function has made use of so far, as `role subject`. */
  unused(): string[];
}

export interface PermittedOptions {
  readonly version?: ServerVersion;
  /** One of the permissions, which is taken away. */
  readonly without?: { readonly role: Role; readonly subject: string };
  /** Whether the functions have one login. */
  readonly together?: boolean;
}

/** Beside the logins there is a user `deaf`, who may publish anything, and hear nothing. */
export async function startPermitted(
  definitions: Definitions,
  { version = "newest", without, together }: PermittedOptions = {},
): Promise<Permitted> {
  const logins = planPermissions(definitions, { version: version === "newest" ? undefined : version, together }).map(
    (login) => lacking(login),
  );
  for (const [, variable = ""] of show(logins, {}).matchAll(/\$(\w+_PASSWORD)/g)) vi.stubEnv(variable, "secret");
  const home = await mkdtemp(join(tmpdir(), "sortie-permitted-"));
  const log = join(home, "nats.log");
  const admin = "no_auth_user: admin\n";
  const deaf = '{ user: deaf, password: secret, permissions: { subscribe: { allow: ["nothing"] } } }';
  const others = `{ user: admin, password: admin }\n${deaf}`;
  const users = show(logins, {}).replace("users: [", `timeout: 30 # a busy machine is slow\n  users: [${others}`);
  const server = await startNatsServer({
    binary: programOf(version),
    config: `${admin}log_file: ${JSON.stringify(log)}\n${users}`,
  });
  const observer = await observe(server);
  const used = { publish: new Set<string>(), subscribe: new Set<string>() };

  function lacking(login: Login): Login {
    if (login.role !== without?.role) return login;
    const publish = login.publish.filter(({ subject }) => subject !== without.subject);
    const subscribe = login.subscribe.filter(({ subject }) => subject !== without.subject);
    const nothing = { subject: "nothing", why: "where the list is empty, all is allowed" };
    return { ...login, publish, subscribe: [...subscribe, nothing] };
  }

  function urlOf(who: Role | "deaf"): string {
    return server.url.replace("//", `//${loginOf(who)?.user ?? who}:secret@`);
  }

  function loginOf(who: string): Login | undefined {
    return logins.find(({ role }) => role === who || (role === "worker" && ["http", "pull", "release"].includes(who)));
  }

  return {
    ...observer,
    server,
    definitions,
    admin: () => connect({ url: server.url }, 5_000),
    urlOf,
    as: (who) => async (ms) => {
      const role = loginOf(who)?.role ?? who;
      const connection = await connect({ url: urlOf(who) }, ms);
      const { publish, request, subscribe } = connection;
      const publishes = (subject: string) => used.publish.add(`${role} ${subject}`);
      return Object.assign(connection, {
        publish(...args: Parameters<typeof publish>) {
          publishes(args[0]);
          publish.apply(connection, args);
        },
        request(...args: Parameters<typeof request>) {
          publishes(args[0]);
          return request.apply(connection, args);
        },
        subscribe(...args: Parameters<typeof subscribe>) {
          used.subscribe.add(`${role} ${args[0]}`);
          return subscribe.apply(connection, args);
        },
      });
    },
    async refused() {
      const lines = (await readFile(log, "utf8")).split("\n");
      return lines.flatMap((line) => /\S+ Violation - .*/i.exec(line)?.[0] ?? []);
    },
    unused() {
      const isUsed = (by: ReadonlySet<string>, role: Role, pattern: string) =>
        [...by].some((one) => {
          const [who, subject = ""] = one.split(" ");
          return who === role && covers(pattern, subject);
        });
      return logins.flatMap(({ role, publish, subscribe }) => [
        ...publish
          .filter(({ subject }) => !isUsed(used.publish, role, subject))
          .map(({ subject }) => `${role} ${subject}`),
        ...subscribe
          .filter(({ subject }) => !subject.startsWith("_INBOX.") && !isUsed(used.subscribe, role, subject))
          .map(({ subject }) => `${role} ${subject}`),
      ]);
    },
    async [Symbol.asyncDispose]() {
      await observer[Symbol.asyncDispose]();
      await server.stop();
      await rm(home, { recursive: true, force: true });
    },
  };
}
