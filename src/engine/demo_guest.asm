; SPDX-License-Identifier: Apache-2.0
;
; demo_guest.asm - the machine that `rollpoint demo` protects.
;
; It has two disks. On boot it looks at all records on both, says on COM1 what
; it found, and then goes on counting: record n to disk 0, when that is done
; record n to disk 1, a short wait, record n + 1. So at any moment disk 1 holds
; the same newest record as disk 0 or the one before it, and each disk holds
; the last SLOTS records without a hole. A disk that was rolled back to one cut
; is in such a state, too; lost, misplaced, torn or reordered writes are not.
;
; Lines on COM1, each ended by CR LF:
;   ROLLPOINT GUEST
;   ROLLPOINT FOUND <newest of disk 0> <newest of disk 1> OK
;   ROLLPOINT FOUND <newest of disk 0> <newest of disk 1> BAD <reason>
;       (damaged: a record is not what was written; missing: a hole; order)
;   ROLLPOINT WRITING <n>   the first record written after this boot
;   COUNT <n>               now and then, when n is on both disks
;   ROLLPOINT ERROR <status of the BIOS>
;
; A record is one sector: "RPGUEST1", counter, disk (0 or 1), 123 pseudo-random
; words that follow from both, FNV-1a over the 127 words before. Words have 32
; bits, little-endian. Record n lies at sector RING + STRIDE * (37 n mod SLOTS).
;
;   nasm -f bin -o demo_guest.bin demo_guest.asm
; The bytes stand in demo_guest.py, and tests/test_demo_guest.py compares them.

bits 16
cpu 386
org 0x7c00

SECTORS  equ 3                  ; of this program
RING     equ 2051               ; first record; odd, so that records lie askew
STRIDE   equ 7                  ; in grains of any size
SLOTS    equ 256
SPREAD   equ 37                 ; odd: visits every slot
WAIT_US  equ 2000
COM1     equ 0x3f8

found    equ 0x9000             ; a sector as read
made     equ 0x9200             ; a sector as it should be

        jmp 0:start
start:  xor ax, ax
        mov ds, ax
        mov es, ax
        mov ss, ax
        mov sp, 0x7c00
        cld
        sti
        mov [packet.count], word SECTORS - 1
        mov [packet.offset], word 0x7e00
        mov [packet.sector], dword 1
        mov ah, 0x42            ; dl: the drive the BIOS booted from
        mov si, packet
        int 0x13
        jc error
        mov [packet.count], word 1
        jmp main

; ah: status of the BIOS
error:  push ax
        mov si, text.error
        call print
        pop ax
        movzx eax, ah
        call print_number
        call print_line
stop:   hlt
        jmp stop

; si: text that ends with 0
print:  lodsb
        test al, al
        jz .end
        call put
        jmp print
.end:   ret

print_line:
        mov si, text.line
        jmp print

; eax: printed in decimal
print_number:
        mov ebx, 10
        xor cx, cx
.split: xor edx, edx
        div ebx
        push dx
        inc cx
        test eax, eax
        jnz .split
.put:   pop ax
        add al, '0'
        call put
        loop .put
        ret

; al: printed; changes ah and dx
put:    mov ah, al
        mov dx, COM1 + 5
.wait:  in al, dx
        test al, 0x20
        jz .wait
        mov al, ah
        mov dx, COM1
        out dx, al
        ret

align 4, db 0
packet: db 16, 0                ; disk address packet of int 13h extensions
.count  dw 0
.offset dw 0
        dw 0
.sector dd 0
        dd 0

text:
.error  db "ROLLPOINT ERROR ", 0
.line   db 13, 10, 0

        times 446 - ($ - $$) db 0
        db 0x80, 0xff, 0xff, 0xff, 0xda, 0xff, 0xff, 0xff
        dd 64, 4032             ; one active partition of no file system
        times 510 - ($ - $$) db 0
        dw 0xaa55

main:   mov dx, COM1 + 1        ; 115200 8N1, no interrupts
        xor al, al
        out dx, al
        mov dx, COM1 + 3
        mov al, 0x80
        out dx, al
        mov dx, COM1
        mov al, 1
        out dx, al
        inc dx
        xor al, al
        out dx, al
        mov dx, COM1 + 3
        mov al, 3
        out dx, al
        mov si, text2.guest
        call print
        mov bp, 0
        call scan
        mov eax, [newest]
        mov [newest0], eax
        mov bp, 1
        call scan
        mov eax, [newest0]      ; what order demands: disk 0 is ahead by 0 or 1
        sub eax, [newest]
        cmp eax, 1
        jbe .told
        cmp [reason], word 0
        jne .told
        mov [reason], word text2.order
.told:  mov si, text2.found
        call print
        mov eax, [newest0]
        call print_number
        mov al, ' '
        call put
        mov eax, [newest]
        call print_number
        mov si, [reason]
        test si, si
        jnz .bad
        mov si, text2.ok
        call print

        mov si, text2.writing
        mov eax, [newest]       ; of disk 1: its next one may be on disk 0 already
        inc eax
.next:  mov [newest], eax
        push si
        mov bp, 0
        call write
        mov bp, 1
        call write
        pop si
        test si, si
        jnz .tell
        mov si, text2.count
        test [newest], byte 31
        jnz .wait
.tell:  call print
        mov eax, [newest]
        call print_number
        call print_line
.wait:  mov ah, 0x86
        xor cx, cx
        mov dx, WAIT_US
        int 0x15
        xor si, si
        mov eax, [newest]
        inc eax
        jmp .next

.bad:   call print
        call print_line
        jmp stop

; Looks at all records of disk bp: sets newest, and reason if one is wrong.
scan:   xor eax, eax
        mov [newest], eax
        mov [valid], eax
        dec eax
        mov [oldest], eax
        mov [slot], word 0
.slot:  movzx eax, word [slot]
        call place
        mov [packet.offset], word found
        mov ah, 0x42
        call disk
        xor eax, eax            ; never written?
        mov di, found
        mov cx, 128
        repe scasd
        je .more
        mov eax, [found + 8]
        imul edx, eax, SPREAD
        and edx, SLOTS - 1
        cmp dx, [slot]
        jne .wrong
        call make
        mov si, found
        mov di, made
        mov cx, 128
        repe cmpsd
        jne .wrong
        mov eax, [found + 8]
        inc dword [valid]
        cmp eax, [newest]
        jb .old
        mov [newest], eax
.old:   cmp eax, [oldest]
        ja .more
        mov [oldest], eax
        jmp .more
.wrong: mov [reason], word text2.damaged
.more:  inc word [slot]
        cmp [slot], word SLOTS
        jb .slot
        cmp [reason], word 0
        jne .end
        mov eax, [newest]       ; all of the last SLOTS, or all there ever were
        cmp eax, SLOTS
        jbe .few
        mov eax, SLOTS
.few:   cmp eax, [valid]
        jne .holes
        test eax, eax
        jz .end
        add eax, [oldest]
        dec eax
        cmp eax, [newest]
        je .end
.holes: mov [reason], word text2.missing
.end:   ret

; Writes record [newest] to disk bp.
write:  mov eax, [newest]
        call make
        imul eax, [newest], SPREAD
        and eax, SLOTS - 1
        call place
        mov [packet.offset], word made
        mov ax, 0x4300
        ; falls through

; One call of the BIOS for disk bp; ah: function
disk:   mov dx, bp
        or dl, 0x80
        mov si, packet
        int 0x13
        jc error
        ret

; eax: slot; sets the sector of the packet
place:  imul eax, eax, STRIDE
        add eax, RING
        mov [packet.sector], eax
        ret

; eax: counter, bp: disk; the record as it should be goes to `made`
make:   mov di, made
        mov [di], dword "RPGU"
        mov [di + 4], dword "EST1"
        mov [di + 8], eax
        movzx edx, bp
        mov [di + 12], edx
        lea eax, [eax * 2 + edx]
        add di, 16
        mov cx, 123
.fill:  imul eax, eax, 1664525
        add eax, 1013904223
        stosd
        loop .fill
        mov si, made
        mov cx, 127
        mov edx, 0x811c9dc5
.sum:   lodsd
        xor edx, eax
        imul edx, edx, 0x01000193
        loop .sum
        mov [di], edx
        ret

text2:
.guest  db "ROLLPOINT GUEST", 13, 10, 0
.found  db "ROLLPOINT FOUND ", 0
.ok     db " OK", 13, 10, 0
.damaged db " BAD damaged", 0
.missing db " BAD missing", 0
.order  db " BAD order", 0
.writing db "ROLLPOINT WRITING ", 0
.count  db "COUNT ", 0

align 4, db 0
reason  dw 0, 0
newest  dd 0
newest0 dd 0
oldest  dd 0
valid   dd 0
slot    dw 0

        times SECTORS * 512 - ($ - $$) db 0
