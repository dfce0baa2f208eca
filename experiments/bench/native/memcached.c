/* SPDX-License-Identifier: Apache-2.0 */
/*
 * memcached under an open-loop load, for `ghostbpf bench`. The result is one JSON object on stdout, times in nanoseconds.
 *
 *   memcached-load SERVER SOCKET --rate 20000 --seconds 5 ...
 *
 * The server is started as a child, so that it has the scheduler of this process; the client's two threads leave it: the
 * load comes from outside of what is measured. Arrivals are those of the RocksDB experiment: they follow from rate and
 * seed alone. The sender never waits for a reply; what a full socket does not take waits in memory. Latencies count from
 * the intended arrival.
 */
#define _GNU_SOURCE
#include <getopt.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>

#include "../../rocksdb/native/load.h"

#define KEYS 1000
#define VALUE_BYTES 100
#define MAX_CONNECTIONS 1000
/* Requests that wait for replies on one connection; more are dropped, and counted. */
#define WAITING (1U << 16)
#define WARM_UP_NS 500000000ULL
/* After the end, replies may take so long. */
#define DRAIN_NS 1000000000ULL
#define SERVER_STARTS_NS 60000000000ULL

#define GET "get key%05u\r\n"
#define GET_BYTES 14
#define REPLY_BYTES (sizeof("VALUE key00000 0 100\r\n") - 1 + VALUE_BYTES + sizeof("\r\nEND\r\n") - 1)

/* `sent` requests were written to the socket; of these, `answered` have their replies. */
struct connection {
	pthread_mutex_t lock; /* of sending: the receiver goes on where the sender found the socket full */
	int fd;
	uint64_t queued, sent, answered;
	unsigned sent_bytes; /* of the request that is being sent */
	unsigned got_bytes; /* of the reply that is being received */
	uint64_t arrivals[WAITING];
	uint16_t keys[WAITING];
};

struct setting {
	double rate, seconds;
	unsigned connections, threads;
	uint64_t seed;
};

static struct connection *connections;
static struct setting setting = {.rate = 20000, .seconds = 5, .connections = 8, .threads = 4, .seed = 2};
static struct histogram latency, lateness;
static uint64_t began_ns, measured_from_ns, ends_ns, sent, dropped;
static pid_t server;
static atomic_bool has_sent_all;

/* ---- the server ---- */

static void end_server(void)
{
	if (server > 0) {
		kill(server, SIGTERM);
		waitpid(server, NULL, 0);
	}
}

static void __attribute__((noreturn)) fail_with_server(const char *what)
{
	if (server > 0)
		kill(server, SIGKILL);
	fail("%s", what);
}

static void start_server(const char *program, const char *path)
{
	char threads[16];

	snprintf(threads, sizeof(threads), "%u", setting.threads);
	server = fork();
	if (server < 0)
		fail("cannot start %s: %s", program, strerror(errno));
	if (server)
		return;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (geteuid())
		execl(program, program, "-s", path, "-a", "0700", "-t", threads, "-c", "2048", NULL);
	else
		execl(program, program, "-s", path, "-a", "0700", "-t", threads, "-c", "2048", "-u", "root", NULL);
	fail("cannot start %s: %s", program, strerror(errno));
}

static int connect_to(const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	uint64_t until = now_ns() + SERVER_STARTS_NS;

	if (strlen(path) >= sizeof(address.sun_path))
		fail_with_server("the path of the socket is too long");
	strcpy(address.sun_path, path);
	while (now_ns() < until) {
		int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

		if (fd < 0)
			break;
		if (!connect(fd, (struct sockaddr *)&address, sizeof(address)))
			return fd;
		close(fd);
		if (waitpid(server, NULL, WNOHANG) == server) {
			server = 0;
			fail_with_server("memcached has ended");
		}
		usleep(5000);
	}
	fail_with_server("memcached takes no connection");
}

static void exchange(int fd, const char *request, size_t bytes, const char *reply)
{
	char answer[64];
	size_t got = 0;

	if (send(fd, request, bytes, MSG_NOSIGNAL) != (ssize_t)bytes)
		fail_with_server("memcached does not take a value");
	while (got < strlen(reply)) {
		ssize_t count = recv(fd, answer + got, strlen(reply) - got, 0);

		if (count <= 0)
			fail_with_server("memcached has closed a connection");
		got += count;
	}
	if (memcmp(answer, reply, got))
		fail_with_server("memcached has not stored a value");
}

static void store_values(int fd)
{
	char value[VALUE_BYTES + 1], request[VALUE_BYTES + 64];

	memset(value, 'x', VALUE_BYTES);
	value[VALUE_BYTES] = 0;
	for (unsigned key = 0; key < KEYS; key++) {
		int bytes = snprintf(request, sizeof(request), "set key%05u 0 0 %u\r\n%s\r\n", key, VALUE_BYTES, value);

		exchange(fd, request, bytes, "STORED\r\n");
	}
}

/* ---- the load ---- */

/* With its lock held. */
static void send_queued(struct connection *c)
{
	while (c->sent < c->queued) {
		char request[GET_BYTES + 1];
		ssize_t count;

		snprintf(request, sizeof(request), GET, c->keys[c->sent % WAITING]);
		count = send(c->fd, request + c->sent_bytes, GET_BYTES - c->sent_bytes, MSG_DONTWAIT | MSG_NOSIGNAL);
		if (count < 0 && (errno == EAGAIN || errno == EINTR))
			return;
		if (count < 0)
			fail_with_server("memcached has closed a connection");
		c->sent_bytes += count;
		if (c->sent_bytes == GET_BYTES) {
			c->sent_bytes = 0;
			__atomic_store_n(&c->sent, c->sent + 1, __ATOMIC_RELEASE);
		}
	}
}

static void leave_scheduler(void)
{
	struct sched_param none = {0};

	if (sched_getscheduler(0) != SCHED_OTHER && sched_setscheduler(0, SCHED_OTHER, &none))
		fail_with_server("the client cannot become SCHED_OTHER");
	prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0);
}

static void *send_all(void *unused)
{
	struct arrivals arrivals = {.rate = setting.rate, .seed = setting.seed};

	(void)unused;
	leave_scheduler();
	for (;;) {
		struct arrival arrival = next_arrival(&arrivals);
		struct connection *c = &connections[arrivals.index % setting.connections];
		uint64_t intended = began_ns + arrival.ns, now;
		bool is_measured = intended >= measured_from_ns;

		if (intended >= ends_ns)
			break;
		if (now_ns() < intended)
			sleep_until(intended);
		now = now_ns();
		if (now >= ends_ns + DRAIN_NS)
			break;
		pthread_mutex_lock(&c->lock);
		if (c->queued - __atomic_load_n(&c->answered, __ATOMIC_ACQUIRE) == WAITING) {
			dropped += is_measured;
		} else {
			c->arrivals[c->queued % WAITING] = intended;
			c->keys[c->queued % WAITING] = mixed(setting.seed + arrivals.index) % KEYS;
			c->queued++;
			send_queued(c);
		}
		pthread_mutex_unlock(&c->lock);
		if (is_measured) {
			sent++;
			record(&lateness, now - intended);
		}
	}
	atomic_store(&has_sent_all, true);
	return NULL;
}

/* All replies are as long: a get that finds its value. */
static void take_replies(struct connection *c)
{
	char bytes[1 << 16];
	ssize_t count = recv(c->fd, bytes, sizeof(bytes), MSG_DONTWAIT);
	uint64_t now = now_ns();

	if (count < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (count <= 0)
		fail_with_server("memcached has closed a connection");
	for (ssize_t at = 0; at < count;) {
		size_t part = REPLY_BYTES - c->got_bytes;

		if (!c->got_bytes && bytes[at] != 'V')
			fail_with_server("memcached has lost a value");
		if (part > (size_t)(count - at))
			part = count - at;
		at += part;
		c->got_bytes += part;
		if (c->got_bytes == REPLY_BYTES) {
			uint64_t arrival = c->arrivals[c->answered % WAITING];

			c->got_bytes = 0;
			if (arrival >= measured_from_ns)
				record(&latency, now - arrival);
			__atomic_store_n(&c->answered, c->answered + 1, __ATOMIC_RELEASE);
		}
	}
	pthread_mutex_lock(&c->lock);
	send_queued(c);
	pthread_mutex_unlock(&c->lock);
}

static bool has_all_replies(void)
{
	if (!atomic_load(&has_sent_all))
		return false;
	for (unsigned n = 0; n < setting.connections; n++)
		if (connections[n].answered < connections[n].queued)
			return false;
	return true;
}

static void receive_all(void)
{
	struct pollfd *polled = zeroed(setting.connections, sizeof(*polled));

	leave_scheduler();
	for (unsigned n = 0; n < setting.connections; n++)
		polled[n] = (struct pollfd){.fd = connections[n].fd, .events = POLLIN};
	while (!has_all_replies() && now_ns() < ends_ns + DRAIN_NS) {
		if (poll(polled, setting.connections, 10) < 0 && errno != EINTR)
			fail_with_server("cannot wait for replies");
		for (unsigned n = 0; n < setting.connections; n++)
			if (polled[n].revents)
				take_replies(&connections[n]);
	}
	free(polled);
}

/* ---- the result ---- */

static void print(const char *name, const struct histogram *h)
{
	printf("\"%s\": {\"count\": %" PRIu64 ", \"p50\": %.1f, \"p90\": %.1f, \"p99\": %.1f, \"p99.9\": %.1f, \"max\": %" PRIu64 "}",
	       name, h->count, percentile(h, 500), percentile(h, 900), percentile(h, 990), percentile(h, 999), h->max);
}

/* Requests without a reply count with their age, which is less than their latency. */
static uint64_t count_unanswered(void)
{
	uint64_t now = now_ns(), count = 0;

	for (unsigned n = 0; n < setting.connections; n++) {
		struct connection *c = &connections[n];

		for (uint64_t k = c->answered; k < c->queued; k++) {
			uint64_t arrival = c->arrivals[k % WAITING];

			if (arrival >= measured_from_ns) {
				record(&latency, now - arrival);
				count++;
			}
		}
	}
	return count;
}

static const struct option OPTIONS[] = {
	{"rate", required_argument, 0, 'r'},
	{"seconds", required_argument, 0, 's'},
	{"connections", required_argument, 0, 'c'},
	{"threads", required_argument, 0, 't'},
	{"seed", required_argument, 0, 'S'},
	{0},
};

int main(int argc, char **argv)
{
	uint64_t unanswered, replies;
	pthread_t sender;
	int option, at;

	while ((option = getopt_long(argc, argv, "", OPTIONS, &at)) != -1) {
		const char *name = option == '?' ? "" : OPTIONS[at].name;

		switch (option) {
		case 'r': setting.rate = number(name, optarg, 1e-3, 1e7); break;
		case 's': setting.seconds = number(name, optarg, 0.001, 86400); break;
		case 'c': setting.connections = number(name, optarg, 1, MAX_CONNECTIONS); break;
		case 't': setting.threads = number(name, optarg, 1, 1000); break;
		case 'S': setting.seed = number(name, optarg, 0, 1e15); break;
		default: return 2;
		}
	}
	if (argc - optind != 2) {
		fputs("usage: memcached-load [OPTION...] SERVER SOCKET\n", stderr);
		return 2;
	}
	start_server(argv[optind], argv[optind + 1]);
	connections = zeroed(setting.connections, sizeof(*connections));
	for (unsigned n = 0; n < setting.connections; n++) {
		pthread_mutex_init(&connections[n].lock, NULL);
		connections[n].fd = connect_to(argv[optind + 1]);
	}
	store_values(connections[0].fd);
	began_ns = now_ns();
	measured_from_ns = began_ns + WARM_UP_NS;
	ends_ns = measured_from_ns + setting.seconds * 1e9;
	start(&sender, send_all, NULL);
	receive_all();
	pthread_join(sender, NULL);
	replies = latency.count;
	unanswered = count_unanswered();
	end_server();
	if (!replies)
		fail("no request was answered within %g s: a lower rate, or more seconds", setting.seconds);
	printf("{");
	print("latency", &latency);
	printf(", ");
	print("lateness", &lateness);
	printf(", \"sent\": %" PRIu64 ", \"dropped\": %" PRIu64 ", \"unanswered\": %" PRIu64 ", \"replies_per_s\": %.3f}\n",
	       sent, dropped, unanswered, replies / setting.seconds);
	return 0;
}
