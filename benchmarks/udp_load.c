/* A client that keeps a window of datagrams on their way to an echo server.

       udp_load HOST PORT WINDOW SIZE

   It reads a number of datagrams from each line of its standard input, sends and receives so many,
   and answers with a line: how many came back, and how many had to be sent again. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define MOST 256

int main(int argc, char **argv)
{
    if (argc != 5)
        return 2;
    int window = atoi(argv[3]), size = atoi(argv[4]);
    if (window < 1 || window > MOST || size < 1 || size > 1400)
        return 2;
    struct sockaddr_in server = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[2]))};
    if (inet_pton(AF_INET, argv[1], &server.sin_addr) != 1)
        return 2;
    int fd = socket(AF_INET, SOCK_DGRAM, 0), room = 1 << 22;
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &room, sizeof room);
    if (connect(fd, (struct sockaddr *)&server, sizeof server))
        return 1;
    static char out[1400], in[MOST][1500];
    memset(out, 'x', sizeof out);
    static struct mmsghdr sending[MOST], receiving[MOST];
    static struct iovec sent[MOST], received[MOST];
    for (int i = 0; i < MOST; i++) {
        sent[i] = (struct iovec){out, size};
        received[i] = (struct iovec){in[i], sizeof in[i]};
        sending[i].msg_hdr = (struct msghdr){.msg_iov = &sent[i], .msg_iovlen = 1};
        receiving[i].msg_hdr = (struct msghdr){.msg_iov = &received[i], .msg_iovlen = 1};
    }
    long wanted;
    while (scanf("%ld", &wanted) == 1) {
        long done = 0, begun = 0, again = 0;
        int due = window;
        while (done < wanted) {
            while (due > 0 && begun < wanted + again) {
                long left = wanted + again - begun;
                int count = sendmmsg(fd, sending, due < left ? due : left, 0);
                if (count < 0)
                    return 1;
                due -= count;
                begun += count;
            }
            struct pollfd ready = {.fd = fd, .events = POLLIN};
            if (poll(&ready, 1, 200) == 0) { /* lost: the window is empty again */
                again += begun - done - again;
                due = window;
                continue;
            }
            int count = recvmmsg(fd, receiving, MOST, MSG_DONTWAIT, NULL);
            if (count < 0)
                return 1;
            for (int i = 0; i < count; i++)
                if (receiving[i].msg_len != (unsigned)size || in[i][0] != 'x')
                    return 1;
            done += count;
            due += count;
        }
        printf("%ld %ld\n", done, again);
        fflush(stdout);
    }
    return 0;
}
